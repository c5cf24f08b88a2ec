"""`onnxcam check --verify`: every real model passes, a wrong rule and an unknown operator do not."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcam.autodiff.registry import RULES, Rule
from onnxcam.check import check
from onnxcam.cli import main
from onnxcam.verify import STEPS, smoothed, verify

pytest.importorskip("onnxruntime")

SHARED = Path(__file__).parents[3] / "shared" / "models"
MODELS = sorted(SHARED.glob("*.onnx"))
SLOW = ("espnetv2_s1_voc256", "yolox_nano_416")  # half a minute each in three directions


@pytest.mark.skipif(not MODELS, reason="the shared models are not here")
@pytest.mark.parametrize("file", MODELS, ids=lambda f: f.stem)
def test_every_real_model_is_verified_at_the_layer_that_check_shows(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if file.stem in SLOW:
        monkeypatch.setattr("onnxcam.verify.verify", partial(verify, directions=1))
    assert main(["check", str(file), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["verification"]
    assert found["verified"]
    assert found["layer"] == report["automatic"]
    assert found["error"] <= (1e-3 if found["oracle"] == "float64" else 1e-2)
    assert found["derivative"] > 0
    assert set(found) >= {"verified", "error", "step", "directions", "oracle"}


@pytest.mark.skipif(not MODELS, reason="the shared models are not here")
@pytest.mark.parametrize("name", ["mnist_cntk8", "vww96_mlperf_int8_qdq", "mobilenet_v1_025_128_qdq_nhwc"])
def test_the_gradient_at_the_first_map_is_verified_through_the_whole_network(name: str) -> None:
    file = SHARED / f"{name}.onnx"
    first = check(file).layers[-1].layer.name
    found = verify(file, layer=first)
    assert found.oracle == "float64"
    assert found.error < 1e-4


def network(middle: str = "a = Sigmoid(c)") -> onnx.ModelProto:
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18, "acme" : 1]>
        net (float[N,3,8,8] x, float[4,3,3,3] w, float[5,4] f) => (float[N,5] y) {{
          c = Conv<pads=[1,1,1,1]>(x, w)
          {middle}
          t = Tanh(a)
          p = GlobalAveragePool(t)
          q = Flatten(p)
          y = Gemm<transB=1>(q, f)
        }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("f", (5, 4))):
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [i for i in model.graph.input if i.name == "x"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def saved(model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return str(path)


def test_a_right_network_is_verified_in_float64() -> None:
    found = verify(network(), layer="c")
    assert found.verified
    assert found.oracle == "float64"
    assert found.error < 1e-5


def segmenter() -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1,3,16,16] x, float[4,3,3,3] w, float[5,4,3,3] v) => (float[1,5,16,16] y)
        <float[4] s = {1, 1, 2, 2}> {
          c = Conv<pads=[1,1,1,1]>(x, w)
          fine = Relu(c)
          coarse = AveragePool<kernel_shape=[2,2], strides=[2,2]>(fine)
          enlarged = Resize<mode="linear">(coarse, , s)
          last = Relu(enlarged)
          y = Conv<pads=[1,1,1,1]>(last, v)
        }""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (5, 4, 3, 3))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    del model.graph.input[1:]
    return model


def test_the_gradient_of_a_segmenter_is_verified_at_the_layer_that_check_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", saved(segmenter(), tmp_path), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verification"]["layer"] == report["automatic"] == "coarse"
    assert report["verification"]["error"] < 1e-5
    assert main(["check", str(tmp_path / "net.onnx"), "--verify", "--layer", "last", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verification"]["layer"] == "last"


def test_differences_that_float32_drowns_are_taken_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcam.verify.SMALL_HEAD", 0)
    assert verify(network(), layer="c").oracle == "float32"
    monkeypatch.setitem(STEPS, "float32", (1e-7,))  # less than a float32 resolves
    again = verify(network(), layer="c")
    assert (again.verified, again.oracle) == (True, "float64")
    monkeypatch.setattr("onnxcam.verify.LARGE_HEAD", 0)
    drowned = verify(network(), layer="c")
    assert (drowned.verified, drowned.oracle) == (False, "float32")


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh", "GlobalAveragePool", "Gemm"])
def test_a_wrong_rule_fails(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = RULES[kind]

    def wrong(op, node, *dys):  # type: ignore[no-untyped-def]
        first, *rest = right(op, node, *dys)
        return (op.Mul(first, 1.05), *rest)

    monkeypatch.setitem(RULES, kind, Rule(wrong, right.wrt, right.broadcast, right.outputs))
    assert main(["check", saved(network(), tmp_path), "--verify", "--layer", "c", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["verification"]
    assert not found["verified"]
    assert found["error"] == pytest.approx(0.05 / 1.05, rel=0.01)


def test_an_operator_without_a_rule_is_the_designed_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(network("a = Det(c) b = acme.Fuse(c)"), tmp_path)
    assert main(["check", model, "--verify", "--layer", "c"]) in (3, 4)
    assert "error:" in capsys.readouterr().err


def test_a_quantised_pair_becomes_a_clip_to_its_range() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        q (float[N] x) => (float[N] y)
        <float s = {0.5}, int8 z = {10}> {
          i = QuantizeLinear(x, s, z)
          y = DequantizeLinear(i, s, z)
        }""")
    from onnx.reference import ReferenceEvaluator

    x = np.array([-100.0, -69.0, -0.3, 0.2, 58.5, 58.6, 100.0], np.float32)
    (y,) = ReferenceEvaluator(smoothed(model)).run(None, {"x": x})
    # (-128 - 10) / 2 = -69 and (127 - 10) / 2 = 58.5 bound the range; inside, nothing is rounded.
    np.testing.assert_allclose(y, [-69.0, -69.0, -0.3, 0.2, 58.5, 58.5, 58.5])


def test_half_precision_becomes_float32() -> None:
    half = numpy_helper.from_array(np.float16([2.0]), "two")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])],
        [half],
    )
    smooth = smoothed(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    onnx.checker.check_model(smooth, full_check=True)
    assert smooth.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
