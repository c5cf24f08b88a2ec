"""Methods whose weights are computed in the graph from activations, gradients, or the head's own weights."""

import numpy as np

from onnxcam.autodiff import differentiate
from onnxcam.errors import UnsupportedError
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layers import Layer
from onnxcam.methods.registry import MethodContext, method, ones
from onnxcam.targets import CLASS_INDEX


@method(
    "gradcam",
    formula="alpha_k = mean_hw G_k",
    paper="Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1",
)
def gradcam(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): the gradient of the class score averaged over space."""
    return context.op.mean(context.gradients, [2, 3])


@method(
    "hirescam",
    formula="alpha = G",
    paper="Draelos and Carin, HiResCAM, 2020",
)
def hirescam(context: MethodContext) -> str:
    """alpha (N, K, h, w): the gradient itself, cell by cell."""
    return context.gradients


@method(
    "gradcamelementwise",
    formula="alpha = G where G A > 0, else 0",
    paper="pytorch-grad-cam, GradCAMElementWise",
)
def gradcam_elementwise(context: MethodContext) -> str:
    """alpha (N, K, h, w): the gradient where it agrees in sign with A, so that each term of the sum is max(0, G A)."""
    op, g = context.op, context.gradients
    return str(op.Mul(g, op.Cast(op.Greater(op.Mul(g, context.activations), 0.0), to=op.dtype)))


@method(
    "gradcam++",
    formula="alpha_k = sum_hw max(0, G_k) G_k^2 / (2 G_k^2 + G_k^3 sum_hw A_k + 1e-6)",
    paper="Chattopadhay et al., Grad-CAM++, WACV 2018, eq. 19",
)
def gradcam_plus_plus(context: MethodContext) -> str:
    """alpha (N, K, 1, 1), as pytorch-grad-cam: no factor exp(score), 1e-6 inside the denominator, 0 where G is 0."""
    op, g = context.op, context.gradients
    square = op.Mul(g, g)
    total = op.ReduceSum(context.activations, [2, 3], keepdims=1)
    weight = op.Div(square, op.Add(op.Add(op.Mul(square, 2.0), op.Mul(op.Mul(square, g), total)), 1e-6))
    return str(op.ReduceSum(op.Mul(op.Relu(g), weight), [2, 3], keepdims=1))


@method(
    "xgradcam",
    formula="alpha_k = sum_hw G_k A_k / (sum_hw A_k + 1e-7)",
    paper="Fu et al., Axiom-based Grad-CAM, BMVC 2020",
)
def xgradcam(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): the gradient averaged with the activations as weights; the denominator keeps its sign."""
    op, a = context.op, context.activations
    along = op.ReduceSum(op.Mul(context.gradients, a), [2, 3], keepdims=1)
    return str(op.Div(along, op.Add(op.ReduceSum(a, [2, 3], keepdims=1), 1e-7)))


@method(
    "layercam",
    formula="alpha = max(0, G)",
    paper="Jiang et al., LayerCAM, TIP 2021",
)
def layercam(context: MethodContext) -> str:
    """alpha (N, K, h, w): the positive part of the gradient."""
    return str(context.op.Relu(context.gradients))


@method(
    "shapleycam",
    formula="alpha_k = mean_hw (G_k - (H A)_k / 2), H the Hessian of the score",
    paper="Cai, CAMs as Shapley Value-based Explainers, 2025",
)
def shapleycam(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): Grad-CAM less half the Hessian-vector product; equal to it on piecewise linear heads."""
    gradients, layer = context.gradients, context.value
    context.settle(gradients, *context.target.values)
    op = context.op
    product = differentiate(context.graph, op, gradients, [layer], cotangent=context.activations)[layer]
    effect = gradients if product is None else op.Sub(gradients, op.Mul(context.channels_first(product), 0.5))
    return str(op.ReduceMean(effect, [2, 3], keepdims=1))


@method(
    "fem",
    formula="alpha_k = mean_hw [A_k > mean(A_k) + 2 std(A_k)]",
    paper="Fuad et al., FEM, IPTA 2020, k = 2",
    gradients=False,
    class_discriminative=False,
)
def fem(context: MethodContext) -> str:
    """alpha (N, K, 1, 1): the share of cells far above their channel's mean, population deviation."""
    op, a = context.op, context.activations
    centred = op.Sub(a, op.ReduceMean(a, [2, 3], keepdims=1))
    deviation = op.Sqrt(op.ReduceMean(op.Mul(centred, centred), [2, 3], keepdims=1))
    rare = op.Cast(op.Greater(centred, op.Mul(deviation, 2.0)), to=op.dtype)
    return str(op.ReduceMean(rare, [2, 3], keepdims=1))


@method(
    "activationmap",
    formula="alpha_k = 1 / K",
    paper="the channel mean; openvino_xai, ActivationMap",
    gradients=False,
    class_discriminative=False,
)
def activationmap(context: MethodContext) -> str:
    """alpha (1, K, 1, 1): every channel counts the same."""
    k = context.layer.channels
    if k is None:
        raise UnsupportedError(f"the number of channels of `{context.layer.name}` is unknown", "bind it with `--size`")
    return context.op.constant(np.full((1, k, 1, 1), 1.0 / k, np.float32))


@method(
    "eigencam",
    formula="first principal component of A",
    paper="Muhammad and Yeasin, Eigen-CAM, IJCNN 2020",
    gradients=False,
    class_discriminative=False,
    combine="eigen",
)
def eigencam(context: MethodContext) -> str:
    """The projection of A onto its first principal component; see `onnxcam.methods.projection` for the sign."""
    return ones(context)


@method(
    "eigengradcam",
    formula="first principal component of G A",
    paper="pytorch-grad-cam, EigenGradCAM",
    combine="eigen",
)
def eigengradcam(context: MethodContext) -> str:
    """Eigen-CAM of the gradient times the activations."""
    return context.gradients


@method(
    "segeigencam",
    formula="first principal component of |G| A",
    paper="pytorch-grad-cam, SegEigenCAM",
    combine="eigen",
)
def segeigencam(context: MethodContext) -> str:
    """Eigen-CAM of the gradient's magnitude times the activations."""
    return str(context.op.Abs(context.gradients))


@method(
    "kpcacam",
    formula="first kernel principal component of A, sigmoid kernel",
    paper="Karmani et al., KPCA-CAM, 2024",
    gradients=False,
    class_discriminative=False,
    combine="kpca",
)
def kpcacam(context: MethodContext) -> str:
    """Kernel PCA of A with the kernel tanh(<x, y> / K + 1), as scikit-learn computes it."""
    return ones(context)


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
    op, index = context.op, context.target.index
    if index is None or context.target.resolved.keys() != {CLASS_INDEX}:
        raise UnsupportedError("method `cam` weighs channels by a class, and the target is none", "use `gradcam`")
    weights, transposed = linear_weights(context.graph, context.head, context.layer)
    rows = op.Transpose(weights, perm=[1, 0]) if transposed else weights
    return str(op.Unsqueeze(op.Gather(op.as_float(rows), index, axis=0), [2, 3]))
