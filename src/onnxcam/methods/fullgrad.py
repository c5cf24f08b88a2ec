"""FullGrad: the gradients of every bias, beside that of the input."""

import numpy as np
import numpy.typing as npt

from onnxcam.autodiff import differentiate
from onnxcam.graph.index import Graph, Node
from onnxcam.methods.attribution import enlarged, float_input, min_max
from onnxcam.methods.registry import MethodContext, method


@method(
    "fullgrad",
    planar=True,
    formula="M = sum_c S(|x_c G_c|) + sum over convolutions and batch norms of sum_k S(|b_k G_k|), S min-max, enlarged",
    paper="Srinivas and Fleuret, Full-Gradient Representation for Neural Network Visualization, NeurIPS 2019",
    combine="none",
    at_input=True,
    requires=float_input,
)
def fullgrad(context: MethodContext) -> str:
    """The map (N, 1, H, W), as pytorch-grad-cam: every channel is scaled to [0, 1] before they are summed.

    b is the bias of a convolution, or beta - mean gamma / sqrt(variance + epsilon) of a batch norm; G_k the gradient at
    its output. Where an exporter folded the batch norms into the convolutions there are fewer biases, and the map is
    another. The layer plays no part.
    """
    graph, picture = context.graph, context.picture
    rank = len(picture.layout.shape) + 2
    biases = {n.outputs[0]: b for n in graph.nodes if (b := _bias(graph, n, rank)) is not None}
    gradients = differentiate(graph, context.op, context.target.score, [picture.name, *biases])
    op = context.op
    x = context.activations
    own = gradients[picture.name]
    terms = [op.Mul(x, context.channels_first(own))] if own is not None else []
    shaped = {v: op.floats(b.reshape(1, -1, 1, 1)) for v, b in biases.items()}
    found = {v: g for v in biases if (g := gradients[v]) is not None}
    terms += [op.Mul(op.Unsqueeze(g, [2]) if rank == 3 else g, shaped[v]) for v, g in found.items()]
    summed = [op.ReduceSum(min_max(op, op.Abs(t)), [1], keepdims=1) for t in terms]
    return str(op.Sum(*(enlarged(op, s, picture.grid) for s in summed)))


def _bias(graph: Graph, node: Node, rank: int) -> npt.NDArray[np.floating] | None:
    """The bias (K,) of a convolution or a batch norm over maps; None where there is none, or it is not constant."""
    if len(graph.shape(node.outputs[0]) or ()) != rank:
        return None
    if node.kind == "Conv" and len(node.inputs) > 2:
        return graph.constant(node.inputs[2])
    if node.kind == "BatchNormalization":
        scale, bias, mean, variance = (graph.constant(i) for i in node.inputs[1:5])
        if scale is not None and bias is not None and mean is not None and variance is not None:
            folded: npt.NDArray[np.floating] = bias - mean * scale / np.sqrt(variance + node.attrs["epsilon"])
            return folded
    return None
