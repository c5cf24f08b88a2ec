"""Methods for vision transformers: tokens masked one neighbourhood at a time, and gradients of the attention maps."""

from collections.abc import Iterator

import numpy as np

from onnxcam.autodiff import differentiate
from onnxcam.errors import UnsupportedError
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import Layout
from onnxcam.methods.ablation import float_layer, lowest_at_zero
from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.registry import MethodContext, looped, method

KERNEL = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16


def token_layer(graph: Graph, head: Head, layer: Layer) -> None:
    """Raises: UnsupportedError where the layer is no row of tokens, or holds integers."""
    if layer.layout.kind != "tokens":
        raise UnsupportedError(
            f"layer `{layer.name}` is no row of tokens, as the layers of a vision transformer are",
            "choose such a layer, or `reciprocam`, which needs none",
        )
    float_layer(graph, head, layer)


@looped(
    "vitreciprocam",
    planar=True,
    formula="M_ij = score of the head with the tokens kept around (i, j), weighed by a 3 x 3 Gaussian",
    paper="Byun and Lee, ViT-ReciproCAM, 2023",
    passes="1 + h w heads",
    combine="none",
    requires=token_layer,
    cut=lambda graph, layer, options: layer.name,
)
def vitreciprocam(loop: Loop) -> list[Floats]:
    """The raw map: the score with patch tokens 0 but around (i, j), there times 1/4, 1/8 or 1/16; class tokens stay.

    Kernel and class tokens as in openvino_xai, the lowest cell subtracted. What bypasses the layer stays as it is: at
    the norm before the last attention, the automatic layer, the patches that do so do not reach a head that reads the
    class token. For a head that averages the tokens choose the residual sum before that norm.
    """
    maps = []
    for layer, a in enumerate(loop.cuts):
        layout = loop.layouts[layer]
        found = [loop.changed_scores(layer, i, _neighbourhoods(a[i], layout), layout.cells) for i in range(len(a))]
        maps.append(lowest_at_zero(np.stack(found), layout))
    return maps


def _neighbourhoods(a: Floats, layout: Layout) -> Iterator[Floats]:
    h, w = layout.grid
    for cell in range(layout.cells):
        mask = np.zeros((h + 2, w + 2), np.float32)
        mask[cell // w : cell // w + 3, cell % w : cell % w + 3] = KERNEL
        kept = a.copy()
        kept[layout.prefix :] *= mask[1:-1, 1:-1].reshape(-1, 1)
        yield kept


def attention_maps(graph: Graph, head: Head, layer: Layer) -> list[str]:
    """The attention maps (N, heads, T, T) over the T tokens of `layer`'s row: outputs of Softmax nodes, block by block.

    Raises: UnsupportedError where there are none, or a fused operator keeps one of them to itself.
    """
    if layer.layout.kind != "tokens":
        raise UnsupportedError(
            f"method `legrad` needs the attention maps of a vision transformer, and layer `{layer.name}` is no row of "
            "tokens",
            "choose a layer of tokens (`onnxcam layers MODEL`), or `gradcam`",
        )
    fused = next((n for n in graph.nodes if n.op_type.endswith("Attention")), None)
    if fused is not None:
        raise UnsupportedError(
            f"method `legrad` needs attention maps, and {fused.kind} node `{fused.name}` keeps its own to itself",
            "export with attention spelt out (an opset below 23; no fusion by ONNX Runtime), or use `gradcam`",
        )
    tokens = layer.layout.prefix + layer.layout.cells
    found = [
        n.outputs[0]
        for n in graph.nodes
        if n.kind == "Softmax"
        and len(shape := graph.shape(n.outputs[0]) or ()) == 4
        and shape[2:] == (tokens, tokens)
        and n.attrs["axis"] in (-1, 3)
    ]
    if not found:
        raise UnsupportedError(
            f"no Softmax gives attention maps (N, heads, {tokens}, {tokens}) over the {tokens} tokens of "
            f"`{layer.name}`",
            "choose a layer whose tokens attend to each other, or `gradcam`",
        )
    return found


@method(
    "legrad",
    planar=True,
    everywhere=True,
    formula="M = mean over blocks, heads and queries of max(0, d score / d attention)",
    paper="Bousselham et al., LeGrad, 2024",
    combine="none",
    on_grid=True,
    requires=attention_maps,
)
def legrad(context: MethodContext) -> str:
    """The map (N, 1, h, w) of attention gradients; the layer says only how the tokens lie.

    The gradients are of the model's own score in every block; the paper and TorchCAM give each block a score of its
    own, the classifier applied to the mean of the block's tokens, which a graph cannot be asked for in general.
    Attention maps that the score does not depend on count as 0.

    Raises: UnsupportedError where the model has no attention maps over the layer's tokens.
    """
    op, layout = context.op, context.layer.layout
    maps = attention_maps(context.graph, context.head, context.layer)
    y, cotangent = context.target.differentiated
    gradients = differentiate(context.graph, op, y, maps, cotangent)
    keys = [op.ReduceMean(op.Relu(g), [1, 2], keepdims=0) for g in gradients.values() if g is not None]
    if not keys:
        raise UnsupportedError("the score does not depend on any attention map", "use `gradcam`")
    mean = op.Mul(op.Sum(*keys), 1 / len(maps))
    patches = op.Slice(mean, [layout.prefix], [layout.prefix + layout.cells], [1])
    return str(op.Reshape(patches, [0, 1, *layout.grid]))
