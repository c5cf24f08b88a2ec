"""Methods whose weights are computed in the graph from activations, gradients, or the head's own weights."""

from onnxcam.errors import UnsupportedError
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layers import Layer
from onnxcam.methods.registry import MethodContext, method


@method(
    "gradcam",
    formula="alpha_k = mean_hw G_k",
    paper="Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1",
)
def gradcam(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): the gradient of the class score averaged over space."""
    return str(context.op.ReduceMean(context.gradients, [2, 3], keepdims=1))


@method(
    "hirescam",
    formula="alpha = G",
    paper="Draelos and Carin, HiResCAM, 2020, eq. 5",
)
def hirescam(context: MethodContext) -> str:
    """alpha (N, K, h, w): the gradient itself, cell by cell."""
    return context.gradients


_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Transpose"})


def linear_weights(graph: Graph, head: Head, layer: Layer) -> tuple[str, bool]:
    """The (C, K) weight value of a CAM head, or (K, C) and True, found by walking from the layer to the logits.

    Raises: UnsupportedError where the way is not pooling, then one linear layer with constant weights.
    """
    value, pooled, found = layer.name, False, ""
    transposed = False
    while value != head.logits:
        readers = graph.consumers(value)
        node = readers[0] if len(readers) == 1 else None
        if node is None or node.domain:
            raise _not_cam(layer.name, "the layer feeds more than one branch" if readers else "it ends")
        if not pooled and _pools_everything(graph, node):
            pooled = True
        elif pooled and not found and node.op_type in ("Gemm", "MatMul", "Conv"):
            found, transposed = _weights_of(graph, node, layer.name)
        elif found and node.op_type in ("Add", "Sum") and any(graph.constant(i) is not None for i in node.inputs):
            pass
        elif node.op_type not in _RESHAPING:
            raise _not_cam(layer.name, f"{node.kind} node `{node.name}` stands in between")
        value = node.outputs[0]
    if not found:
        raise _not_cam(
            layer.name, "there is no linear layer after the pooling" if pooled else "nothing pools the layer"
        )
    return found, transposed


def _pools_everything(graph: Graph, node: Node) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if node.op_type == "AveragePool":
        kernel, pads = tuple(node.attrs["kernel_shape"]), node.attrs.get("pads") or [0]
        return before is not None and before[2:] == kernel and not any(pads)
    if node.op_type == "ReduceMean" and len(node.inputs) > 1:
        axes = graph.constant(node.inputs[1])
        return axes is not None and sorted(int(a) % 4 for a in axes.ravel()) == [2, 3] and after is not None
    return False


def _weights_of(graph: Graph, node: Node, layer: str) -> tuple[str, bool]:
    weights = node.inputs[1]
    if weights not in graph.initializers:
        raise _not_cam(layer, f"the weights of {node.kind} node `{node.name}` are not constant")
    if node.op_type == "Gemm":
        if node.attrs["transA"] or node.attrs["alpha"] != 1.0:
            raise _not_cam(layer, f"Gemm node `{node.name}` is scaled or transposed")
        return weights, not node.attrs["transB"]
    if node.op_type == "MatMul":
        return weights, True
    raise _not_cam(layer, f"the linear layer is Conv node `{node.name}`")


def _not_cam(layer: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"method `cam` needs global average pooling and one linear layer after `{layer}`: {why}",
        "use `gradcam`, which equals `cam` up to scale on such heads and works on any other",
    )


@method(
    "cam",
    formula="alpha_k = W[class, k] of the linear layer after global average pooling",
    paper="Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, eq. 2",
    gradients=False,
    requires=linear_weights,
)
def cam(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): the weights of the class in the linear layer that follows global average pooling.

    The map is max(0, .) of the weighted sum; the paper and TorchCAM draw it without the ReLU (`raw` keeps it).

    Raises: UnsupportedError where the head is not pooling, then one linear layer with constant weights.
    """
    op = context.op
    weights, transposed = linear_weights(context.graph, context.head, context.layer)
    rows = op.Transpose(weights, perm=[1, 0]) if transposed else weights
    return str(op.Unsqueeze(op.Gather(op.as_float(rows), context.target.index, axis=0), [2, 3]))
