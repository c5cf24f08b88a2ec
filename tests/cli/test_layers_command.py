"""`onnxcam layers`: best first, what vanishes last, and the contact sheet."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from colours import Result
from onnx import numpy_helper, parser
from PIL import Image

from onnxcam import Explainer
from onnxcam.check import check
from onnxcam.errors import UnsupportedError
from onnxcam.preview import spread
from onnxcam.sheet import Panel, Row, sheet

VIT = Path(__file__).parents[1] / "parity" / "goldens" / "vit.onnx"
SIZE = (24, 36)
NORM = "/blocks/blocks.1/norm1/LayerNormalization_output_0"


def test_layers_that_no_gradient_reaches_come_last_and_are_named() -> None:
    """In a class-token ViT, all behind the last attention but the class token is dropped."""
    report = check(VIT, size=SIZE)
    assert report.layers[0].layer.name == NORM and report.layers[0] is report.automatic
    gone = [r.vanishes for r in report.layers]
    assert gone == sorted(gone) and 0 < sum(gone) < len(gone)
    assert all(("gradcam" in r.methods) != r.vanishes for r in report.layers)
    assert all("eigencam" in r.methods for r in report.layers)
    reached = [r.layer.depth for r in report.layers[1:] if not r.vanishes]
    assert reached == sorted(reached, reverse=True)
    behind = min(r.layer.depth for r in report.layers if r.vanishes)
    assert behind > report.layers[0].layer.depth


def test_at_the_last_block_the_nearest_layer_with_gradients_is_named_and_the_automatic_one_has_them() -> None:
    last = "/blocks/blocks.1/Add_1_output_0"
    with pytest.raises(UnsupportedError) as error:
        Explainer(VIT, size=SIZE, layer=last)
    assert error.value.message == (
        f"gradients at layer `{last}` vanish identically: only its class token reaches the score"
    )
    named = error.value.hint.split("`")[1]
    report = check(VIT, size=SIZE)
    depths = {r.layer.name: (r.layer.depth, r.vanishes) for r in report.layers}
    assert not depths[named][1]
    assert all(gone for depth, gone in depths.values() if depths[named][0] < depth <= depths[last][0])
    x = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    for layer in (named, None):
        (explanation,) = Explainer(VIT, size=SIZE, layer=layer, threads=1).explain_tensor(x)
        assert np.abs(explanation.raw).max() > 1e-3


NETWORK = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,16,16] x) => (float[N,2] y)
    { a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
      d = Conv<pads=[1,1,1,1]>(c, w2) e = Relu(d) p = GlobalAveragePool(e) f = Flatten(p) y = Gemm<transB=1>(f, h) }"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model, rng = parser.parse_model(NETWORK), np.random.default_rng(0)
    for name, shape in {"w1": (4, 3, 3, 3), "w2": (5, 4, 3, 3), "h": (2, 5)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.save(model, "net.onnx")
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save("in.png")
    return Path("net.onnx")


def test_the_sheet_holds_the_overlay_of_every_layer_best_first(network: Path, onnxcam: Callable[..., Result]) -> None:
    result = onnxcam("layers", "net.onnx", "--preview", "in.png", "--target", "1")
    assert result.code == 0 and "5 of 5 layers -> net.layers.png" in result.err
    names, depth = ["e", "d", "c", "b", "a"], {"e": 5, "d": 4, "c": 3, "b": 2, "a": 1}
    sides, channels = dict.fromkeys("abcde", "8x8") | {"a": "16x16", "b": "16x16"}, dict.fromkeys("abc", 4)
    ops = {"a": "Conv", "b": "Relu", "c": "MaxPool", "d": "Conv", "e": "Relu"}
    panels = []
    for name in names:
        explanation = Explainer(network, layer=name, threads=1)("in.png", 1)
        mark = "  (automatic)" if name == "e" else ""
        lines = [name + mark, f"{ops[name]}, {sides[name]}, K={channels.get(name, 5)}, depth {depth[name]}/8"]
        empty = ["empty: no cell speaks for this class"] if explanation.is_empty else []
        panels.append(Panel(explanation.overlay(), (*lines, *empty)))
    heading = f"Grad-CAM for {explanation.name}, {explanation.strength}; best layer first"
    wanted = np.asarray(sheet([""] * 4, [Row(heading, panels[:4]), Row("", panels[4:])]), np.int16)
    got = np.asarray(Image.open("net.layers.png").convert("RGB"), np.int16)
    assert got.shape == wanted.shape and np.abs(got - wanted).max() <= 1  # one run for all layers, or one each
    shades = [np.asarray(p.image, np.int16) for p in panels]
    assert all(np.abs(a - b).max() > 20 for a, b in itertools.pairwise(shades))


def test_the_layers_of_a_sheet_are_those_printed(network: Path, onnxcam: Callable[..., Result]) -> None:
    result = onnxcam("layers", "net.onnx", "--preview", "in.png", "--count", "2", "-o", "sheet.jpg", "--json")
    assert [r["name"] for r in json.loads(result.out)] == ["e", "b"] and Path("sheet.jpg").is_file()


def test_a_few_layers_of_every_grid_are_taken(network: Path) -> None:
    layers = check(network).layers
    assert [[r.layer.name for r in spread(layers, n)] for n in (1, 2, 3, 9)] == [
        ["e"], ["e", "b"], ["e", "d", "b"], ["e", "d", "c", "b", "a"],
    ]  # fmt: skip


def test_a_sheet_that_cannot_be_written_is_refused_first(network: Path, onnxcam: Callable[..., Result]) -> None:
    result = onnxcam("layers", "net.onnx", "--preview", "in.png", "-o", "sheet.txt")
    assert result.code == 6 and "cannot write a `.txt` file" in result.err
    assert onnxcam("layers", "net.onnx", "--preview", "no.png").code == 5
