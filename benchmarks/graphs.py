"""Networks of the usual sizes with seeded random weights, built with `onnx` alone, in the form exporters write them.

BatchNormalization is folded into the convolutions, as in every real export; the batch axis is `N`. Weights are drawn
so that activations keep their scale through the depth, which keeps softmaxes and gradients away from saturation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

IR_VERSION = 9


class Net:
    """Appends nodes and weights; every method returns the name of its output."""

    def __init__(self, name: str, opset: int = 18, seed: int = 0) -> None:
        self.name, self.opset = name, opset
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"/{op}_{len(self.nodes)}_output_0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output.removesuffix("_output_0"), **attributes))
        return output

    def constant(self, array: Any) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, std: float) -> str:
        return self.constant((self._rng.standard_normal(shape, np.float32) * std).astype(np.float32))

    def conv(self, x: str, c: int, m: int, k: int, stride: int = 1, group: int = 1, gain: float = 2.0) -> str:
        """Conv and the bias that the folded normalisation leaves."""
        weight = self.normal(m, c // group, k, k, std=(gain / (c // group * k * k)) ** 0.5)
        bias, pad = self.normal(m, std=0.05), (k - 1) // 2
        return self.add("Conv", x, weight, bias, kernel_shape=[k, k], strides=[stride, stride], pads=[pad] * 4,
                        dilations=[1, 1], group=group)  # fmt: skip

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def gemm(self, x: str, c: int, m: int) -> str:
        return self.add("Gemm", x, self.normal(m, c, std=c**-0.5), self.normal(m, std=0.05), transB=1)

    def dense(self, x: str, c: int, m: int) -> str:
        """MatMul and Add over the last axis, as exporters write linear layers on more than two axes."""
        return self.add("Add", self.add("MatMul", x, self.normal(c, m, std=c**-0.5)), self.normal(m, std=0.02))

    def layer_norm(self, x: str, c: int) -> str:
        scale, bias = self.constant(np.ones(c, np.float32)), self.constant(np.zeros(c, np.float32))
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

    def classifier(self, x: str, c: int) -> str:
        """Global average pooling and one linear layer to 1,000 classes."""
        return self.gemm(self.add("Flatten", self.add("GlobalAveragePool", x), axis=1), c, 1000)

    def model(self, output: str, size: int = 224) -> ModelProto:
        self.nodes.append(helper.make_node("Identity", [output], ["logits"], name="logits"))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, self.name, [image], [logits], self.weights)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
            producer_name="benchmarks",
        )


def resnet50() -> ModelProto:
    """He et al., 2015: 3, 4, 6, 3 bottlenecks, the stride in the 3x3 convolution; 25.5 M weights."""
    net = Net("resnet50")
    x = net.add("Relu", net.conv("image", 3, 64, 7, 2))
    x, c = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            shortcut = net.conv(x, c, 4 * width, 1, stride, gain=1) if block == 0 else x
            y = net.add("Relu", net.conv(x, c, width, 1))
            y = net.add("Relu", net.conv(y, width, width, 3, stride))
            x, c = net.add("Relu", net.add("Add", net.conv(y, width, 4 * width, 1, gain=0.2), shortcut)), 4 * width
    return net.model(net.classifier(x, c))


# Expansion, channels, repeats, stride; for EfficientNet with the kernel second.
MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
EFFICIENTNET_B0 = ((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1),
                   (6, 5, 192, 4, 2), (6, 3, 320, 1, 1))  # fmt: skip


def mobilenetv2() -> ModelProto:
    """Sandler et al., 2018: 17 inverted residuals with ReLU6 as Clip; 3.5 M weights."""
    net = Net("mobilenetv2")
    x, c = net.relu6(net.conv("image", 3, 32, 3, 2)), 32
    for t, m, n, s in MOBILENETV2:
        for i in range(n):
            stride, wide = s if i == 0 else 1, t * c
            y = net.relu6(net.conv(x, c, wide, 1)) if t > 1 else x
            y = net.conv(net.relu6(net.conv(y, wide, wide, 3, stride, wide)), wide, m, 1, gain=1)
            x, c = net.add("Add", x, y) if stride == 1 and c == m else y, m
    return net.model(net.classifier(net.relu6(net.conv(x, c, 1280, 1)), 1280))


def efficientnet_b0() -> ModelProto:
    """Tan and Le, 2019: 16 inverted residuals with SiLU and squeeze-excitation; 5.3 M weights."""
    net = Net("efficientnet_b0")
    x, c = net.silu(net.conv("image", 3, 32, 3, 2)), 32
    for t, k, m, n, s in EFFICIENTNET_B0:
        for i in range(n):
            stride, wide = s if i == 0 else 1, t * c
            y = net.silu(net.conv(x, c, wide, 1)) if t > 1 else x
            y = net.silu(net.conv(y, wide, wide, k, stride, wide))
            gate = net.silu(net.conv(net.add("GlobalAveragePool", y), wide, c // 4, 1))
            y = net.add("Mul", net.add("Sigmoid", net.conv(gate, c // 4, wide, 1)), y)
            y = net.conv(y, wide, m, 1)
            x, c = net.add("Add", y, x) if stride == 1 and c == m else y, m
    return net.model(net.classifier(net.silu(net.conv(x, c, 1280, 1)), 1280))


def convnext_tiny() -> ModelProto:
    """Liu et al., 2022: 3, 3, 9, 3 blocks of 7x7 depthwise Conv, LayerNormalization and Gelu; 28.6 M weights."""
    net = Net("convnext_tiny", opset=20)

    def normed(x: str, c: int) -> str:
        rows = net.layer_norm(net.add("Transpose", x, perm=[0, 2, 3, 1]), c)
        return net.add("Transpose", rows, perm=[0, 3, 1, 2])

    def patches(x: str, c: int, m: int, k: int) -> str:
        weight = net.normal(m, c, k, k, std=(c * k * k) ** -0.5)
        return net.add("Conv", x, weight, net.normal(m, std=0.02), kernel_shape=[k, k], strides=[k, k])

    x, c = normed(patches("image", 3, 96, 4), 96), 96
    for stage, blocks in enumerate((3, 3, 9, 3)):
        if stage:
            x, c = patches(normed(x, c), c, 2 * c, 2), 2 * c
        for _ in range(blocks):
            y = net.add("Transpose", net.conv(x, c, c, 7, group=c, gain=1), perm=[0, 2, 3, 1])
            y = net.dense(net.add("Gelu", net.dense(net.layer_norm(y, c), c, 4 * c)), 4 * c, c)
            scaled = net.add(
                "Mul", net.add("Transpose", y, perm=[0, 3, 1, 2]), net.constant(np.full((c, 1, 1), 0.3, np.float32))
            )
            x = net.add("Add", scaled, x)
    pooled = net.layer_norm(net.add("Transpose", net.add("GlobalAveragePool", x), perm=[0, 2, 3, 1]), c)
    return net.model(net.gemm(net.add("Flatten", pooled, axis=1), c, 1000))


def vit_b16() -> ModelProto:
    """Dosovitskiy et al., 2020: 12 blocks of width 768 with a class token; 86 M weights."""
    net = Net("vit_b16", opset=20)
    c, heads, tokens = 768, 12, 197
    weight = net.normal(c, 3, 16, 16, std=(3 * 256) ** -0.5)
    x = net.add("Conv", "image", weight, net.normal(c, std=0.02), kernel_shape=[16, 16], strides=[16, 16])
    x = net.add("Transpose", net.add("Reshape", x, net.constant(np.array([0, c, 196]))), perm=[0, 2, 1])
    batch = net.add("Gather", net.add("Shape", x), net.constant(np.array([0])), axis=0)
    token = net.add(
        "Expand", net.normal(1, 1, c, std=0.02), net.add("Concat", batch, net.constant(np.array([1, c])), axis=0)
    )
    x = net.add("Add", net.add("Concat", token, x, axis=1), net.normal(1, tokens, c, std=0.02))
    for _ in range(12):
        y = net.layer_norm(x, c)
        q, k, v = (
            net.add("Reshape", net.dense(y, c, c), net.constant(np.array([0, tokens, heads, c // heads])))
            for _ in range(3)
        )
        scores = net.add(
            "MatMul", net.add("Transpose", q, perm=[0, 2, 1, 3]), net.add("Transpose", k, perm=[0, 2, 3, 1])
        )
        weights = net.add("Softmax", net.add("Mul", scores, net.constant(np.float32((c // heads) ** -0.5))), axis=-1)
        mixed = net.add(
            "Transpose", net.add("MatMul", weights, net.add("Transpose", v, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3]
        )
        x = net.add("Add", net.dense(net.add("Reshape", mixed, net.constant(np.array([0, tokens, c]))), c, c), x)
        y = net.dense(net.add("Gelu", net.dense(net.layer_norm(x, c), c, 4 * c)), 4 * c, c)
        x = net.add("Add", y, x)
    first = net.add("Gather", net.layer_norm(x, c), net.constant(np.int64(0)), axis=1)
    return net.model(net.gemm(first, c, 1000))


def chain(nodes: int) -> ModelProto:
    """A plain residual network of about `nodes` nodes on a 32 x 32 picture, for growth with the size of the graph."""
    net = Net(f"chain{nodes}")
    x = net.add("Relu", net.conv("image", 3, 16, 3))
    while len(net.nodes) < nodes - 8:
        y = net.add("Relu", net.conv(x, 16, 16, 3))
        x = net.add("Relu", net.add("Add", net.conv(y, 16, 16, 3, gain=0.1), x))
    return net.model(net.classifier(x, 16), size=32)


NETWORKS: dict[str, Callable[[], ModelProto]] = {
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenetv2,
    "EfficientNet-B0": efficientnet_b0,
    "ConvNeXt-T": convnext_tiny,
    "ViT-B/16": vit_b16,
}


def pictures(batch: int, size: Sequence[int] = (3, 224, 224), seed: int = 1) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """A seeded batch (N, C, H, W) float32, normally distributed, as normalised pixels roughly are."""
    return np.random.default_rng(seed).standard_normal((batch, *size), np.float32)
