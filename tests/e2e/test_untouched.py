"""Adding outputs changes nothing: the rewritten model still answers as the file did."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from onnxcam import demo, rewrite

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
NETWORKS = json.loads((GOLDENS / "goldens.json").read_text())["networks"]
CASES = [
    pytest.param(name, file, id=file)
    for name, entry in NETWORKS.items()
    for file in dict.fromkeys([entry["onnx"], *(e["onnx"] for e in entry["exports"])])
    if entry["layout"]["kind"] == "channels_first"
]


def session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_same_answers(model: ModelProto, rewritten: ModelProto, feed: dict[str, np.ndarray]) -> None:
    before, after = session(model), session(rewritten)
    names = [o.name for o in before.get_outputs()]
    assert [i.name for i in after.get_inputs()] == [*feed, "class_index"]
    assert [o.name for o in after.get_outputs()][: len(names)] == names
    expected = before.run(names, feed)
    for index in (-1, 0):
        got = after.run(names, {**feed, "class_index": np.array([index])})
        for e, g in zip(expected, got, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6 * max(1, np.abs(e).max()))
            assert np.array_equal(g.argmax(1), e.argmax(1))


@pytest.mark.parametrize(("network", "file"), CASES)
@pytest.mark.parametrize("layer", ["last", "middle"])
def test_golden_networks_answer_as_before(network: str, file: str, layer: str) -> None:
    entry = NETWORKS[network]
    with np.load(GOLDENS / entry["arrays"]) as stored:
        x = stored["x"]
    layers = next((e["layers"] for e in entry["exports"] if e["onnx"] == file), None)
    layers = layers or {role: entry["layers"][role]["value"] for role in ("last", "middle")}
    model = onnx.load(GOLDENS / file)
    rewritten = rewrite(model, layer=layers[layer], method="hirescam", size=x.shape[2:])
    assert_same_answers(model, rewritten, {entry["input"]: x})


@pytest.mark.parametrize("method", ["gradcam", "cam"])
def test_the_demo_model_answers_as_before(method: str) -> None:
    model = onnx.load(demo.FOLDER / "demo.onnx")
    (x,) = model.graph.input
    channels, height, width = (d.dim_value for d in x.type.tensor_type.shape.dim[1:])
    noise = np.random.default_rng(0).normal(size=(4, channels, height, width)).astype(np.float32)
    assert_same_answers(model, rewrite(model, method=method), {x.name: noise})
