"""The automatic layer where the score is read off a map."""

import onnx
import pytest
from onnx import parser

from onnxcam import Explainer
from onnxcam.targets import Element, Linear, TargetSpec


def net(size: int, body: str, channels: int = 5) -> onnx.ModelProto:
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,{size},{size}] x) => (float[N,{channels},{size},{size}] y)
        <float[4] up = {{1, 1, 2, 2}}, float[4] up4 = {{1, 1, 4, 4}}, float[4] up8 = {{1, 1, 8, 8}},
         float[5,3,1,1] w = {{{", ".join(["1"] * 15)}}}, float[5,6,1,1] v = {{{", ".join(["1"] * 30)}}},
         float[6,3,1,1] u = {{{", ".join(["1"] * 18)}}}>
        {{ {body} }}""")
    onnx.checker.check_model(model)
    return model


def pooled(value: str, source: str) -> str:
    return f"{value} = MaxPool<kernel_shape=[2,2], strides=[2,2]>({source}) "


NETS = {
    # The bottom of a U-Net, beside which the skip runs.
    "the bottleneck": (
        net(32, pooled("p", "x") + pooled("q", "p") + "b = Relu(q) m = Resize(b, , up) k = Concat<axis=1>(m, p) "
            "d = Conv(k, v) y = Resize(d, , up)"),
        "b",
    ),
    # Cells of 32 pixels say little about where: the next map that is enlarged has 16.
    "the first with cells of 16 pixels": (
        net(64, pooled("p", "x") + pooled("q", "p") + pooled("r", "q") + pooled("s", "r") + pooled("t", "s")
            + "b = Relu(t) m = Resize(b, , up) e = Relu(m) n = Resize(e, , up) f = Conv(n, w) o = Resize(f, , up8) "
            "y = Identity(o)"),
        "e",
    ),
    # A pyramid: maps of several sizes, each enlarged at once.
    "the coarsest of a pyramid": (
        net(32, pooled("p", "x") + pooled("q", "p") + "a = Relu(p) b = Sigmoid(q) m = Resize(a, , up) "
            "n = Resize(b, , up4) k = Concat<axis=1>(m, n) y = Conv(k, v)"),
        "b",
    ),
    # The classes themselves are no layer: what they are made of is.
    "what the classes are made of": (
        net(32, pooled("p", "x") + "a = Relu(p) g = Conv(a, u) h = Tanh(g) c = Conv(h, v) y = Resize(c, , up)"), "h",
    ),
    "what the classes are made of where nothing is enlarged": (
        net(32, "g = Conv(x, u) h = Tanh(g) c = Conv(h, v) y = Sigmoid(c)"), "h",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_layer_is(name: str) -> None:
    model, layer = NETS[name]
    made = Explainer(model, output="y", threads=1)
    assert made.layer == layer
    assert f"layer `{layer}` chosen: the last map before one is enlarged" in made.notes


@pytest.mark.parametrize("target", [Element("y[2,3:9,4]"), Linear({}, outputs=("y",))])
def test_parts_of_a_map_are_read_off_it_too(target: TargetSpec) -> None:
    assert Explainer(NETS["the bottleneck"][0], target=target, threads=1).layer == "b"
