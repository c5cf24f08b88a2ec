"""The golden data of this folder describe the ONNX files beside them (how they were made: README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

GOLDENS = Path(__file__).parent / "goldens"
INDEX: dict[str, Any] = json.loads((GOLDENS / "goldens.json").read_text())


def run(model: onnx.ModelProto, x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    """Named values of the model at `x` in ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=o) for o in outputs if o not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"x": x})


@pytest.mark.parametrize("name", INDEX["networks"])
def test_onnx_file_reproduces_the_logits_and_activations_of_pytorch(name: str) -> None:
    entry, arrays = INDEX["networks"][name], np.load(GOLDENS / f"{name}.npz")
    values = [layer["value"] for layer in entry["layers"].values()]
    logits, *activations = run(onnx.load(GOLDENS / entry["onnx"]), arrays["x"], [entry["output"], *values])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-4)
    for layer, A in zip(entry["layers"], activations, strict=True):
        np.testing.assert_allclose(A, arrays[f"A.{layer}"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", INDEX["networks"])
def test_predicted_classes_are_the_argmax_and_explicit_ones_differ_between_samples(name: str) -> None:
    entry, arrays = INDEX["networks"][name], np.load(GOLDENS / f"{name}.npz")
    assert entry["classes"]["predicted"] == arrays["logits"].argmax(1).tolist()
    for key in ("explicit", "explicit2"):
        assert len(set(entry["classes"][key])) == len(arrays["x"])
        assert all(c != p for c, p in zip(entry["classes"][key], entry["classes"]["predicted"], strict=True))


@pytest.mark.parametrize("name", INDEX["networks"])
def test_every_listed_map_is_stored_and_spans_the_unit_interval_for_each_sample(name: str) -> None:
    entry, arrays = INDEX["networks"][name], np.load(GOLDENS / f"{name}.npz")
    n, _, h, w = arrays["x"].shape
    for recipe in entry["maps"]:
        values = arrays[recipe["key"]]
        assert values.shape == (n, h, w) and values.dtype == np.float32
        np.testing.assert_array_equal(values.min((1, 2)), 0.0)
        np.testing.assert_allclose(values.max((1, 2)), 1.0, atol=1e-5)


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.onnx")), ids=lambda p: p.name)
def test_onnx_files_hold_no_stack_traces_or_paths(path: Path) -> None:
    content = path.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"/home/", b'File "'):
        assert trace not in content
