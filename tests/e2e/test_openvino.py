"""The second runtime: the same numbers as ONNX Runtime's, from OpenVINO."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcam import Explainer, OnnxCamError
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.errors import ModelError, UsageError
from onnxcam.runtime import OpenVinoSession

pytest.importorskip("openvino", reason="the second runtime is an extra")

MODEL, PICTURE = FOLDER / "demo.onnx", PICTURES / "key-spiral.jpg"


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "saliency", "ablationcam", "reciprocam"])
def test_openvino_computes_the_maps_of_onnx_runtime(method: str) -> None:
    theirs, ours = (Explainer(MODEL, method=method, runtime=runtime) for runtime in ("onnxruntime", "openvino"))
    for target in (None, "key"):
        a, b = theirs(PICTURE, target), ours(PICTURE, target)
        assert a.class_index == b.class_index
        np.testing.assert_allclose(a.raw, b.raw, rtol=1e-3, atol=1e-4 * np.abs(a.raw).max())
        np.testing.assert_allclose(a.score, b.score, rtol=1e-4)


def test_what_ran_is_in_the_record() -> None:
    record = Explainer(MODEL, runtime="openvino")(PICTURE).record()["provenance"]
    assert record["providers"] == ["OpenVINO CPU"]
    assert "openvino" in record["versions"] and "onnxruntime" not in record["versions"]


def test_many_threads_on_one_explainer_get_what_one_gets() -> None:
    explainer = Explainer(MODEL, runtime="openvino", threads=1)
    targets = [i % explainer.classes for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda t: explainer(PICTURE, t).raw, targets))
    for target, raw in zip(targets, together, strict=True):
        np.testing.assert_array_equal(raw, explainer(PICTURE, target).raw)


def test_a_runtime_or_device_that_is_not_there_is_a_designed_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no runtime `openvin`"):
        Explainer(MODEL, runtime="openvin")
    with pytest.raises(UsageError, match="OpenVINO has no device `NPU9`"):
        Explainer(MODEL, runtime="openvino", providers=["npu9"])
    with pytest.raises(OnnxCamError, match="ONNX Runtime's"):
        Explainer(MODEL, runtime="openvino", session_options=object())


def test_a_model_is_compiled_for_what_is_asked_for_and_answers_whatever_is() -> None:
    model = onnx.load(MODEL)
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[0].output[0]))
    scores, values = (o.name for o in model.graph.output)
    x = np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype(np.float32)
    session = OpenVinoSession(model, outputs=[scores])
    native = onnxruntime.InferenceSession(model.SerializeToString())
    expected = {name: native.run([name], {"image": x})[0] for name in (scores, values)}
    for asked in ([scores], [values], None, [values, scores]):
        got = session.run({"image": np.flip(np.flip(x).copy())}, asked)  # not contiguous
        assert list(got) == (asked or [scores, values])
        for name, value in got.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    assert [len(part._outputs) for part in session._parts.values()] == [1, 1, 2, 2]
    with pytest.raises(ModelError, match="OpenVINO failed on input `picture`"):
        session.run({"picture": x})
    with pytest.raises(ModelError, match="OpenVINO failed on input `image` float64"):
        session.run({"image": x.astype(np.float64)})
