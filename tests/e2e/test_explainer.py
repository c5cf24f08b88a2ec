"""The object people hold: the same answer from any thread, any kind of input, and a record of how it came about."""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser
from PIL import Image

import onnxcam
from onnxcam import Explainer, Preprocess
from onnxcam.demo import FOLDER
from onnxcam.errors import UsageError

LABELS = [f"kind {i}" for i in range(5)]


def network() -> ModelProto:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        network (float[N,3,24,24] x) => (float[N,5] y)
        {
            h = Conv<strides=[2,2], pads=[1,1,1,1], kernel_shape=[4,4]>(x, w1, b1)
            i = Relu(h)
            c = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(i, w2, b2)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, v, b)
            y = Softmax(z)
        }""")
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 4, 4), "b1": (6,), "w2": (8, 6, 3, 3), "b2": (8,), "v": (5, 8), "b": (5,)}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def pictures(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (int(h), int(w), 3), np.uint8) for h, w in rng.integers(20, 60, (n, 2))]


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_sixteen_threads_give_what_one_gives(method: str) -> None:
    explainer = Explainer(network(), method=method, labels=LABELS, threads=1)
    jobs = [(picture, target) for picture in pictures(16) for target in (None, 0, "kind 3", 4)]
    serial = [explainer(*job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(lambda job: explainer(*job), jobs))
    for s, p in zip(serial, parallel, strict=True):
        assert np.array_equal(p.values, s.values) and np.array_equal(p.raw, s.raw)
        assert p.record() == s.record()
    assert len({e.values.tobytes() for e in serial}) > 40  # the jobs are told apart


def test_a_path_bytes_and_a_proto_give_the_same_explanation(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path)
    (picture,) = pictures(1)
    one, two, three = (Explainer(m, threads=1)(picture, 2) for m in (path, path.read_bytes(), network()))
    assert np.array_equal(one.values, two.values) and np.array_equal(one.values, three.values)


class Tensor:
    """What a tensor of another library shows: DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_pictures_and_tensors_come_in_through_dlpack() -> None:
    explainer = Explainer(network(), threads=1)
    (picture,) = pictures(1)
    assert np.array_equal(explainer(Tensor(picture), 1).values, explainer(picture, 1).values)
    x = np.random.default_rng(2).normal(size=(2, 3, 24, 24)).astype(np.float32)
    for a, b in zip(explainer.explain_tensor(Tensor(x), 1), explainer.explain_tensor(x, 1), strict=True):
        assert np.array_equal(a.values, b.values)


def test_tensors_that_are_not_contiguous_give_the_same_map() -> None:
    explainer = Explainer(network(), threads=1)
    x = np.random.default_rng(2).normal(size=(1, 24, 24, 3)).astype(np.float32)
    (a,) = explainer.explain_tensor(x.transpose(0, 3, 1, 2), 1)
    (b,) = explainer.explain_tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), 1)
    assert np.array_equal(a.values, b.values)


def test_a_picture_and_its_tensor_have_one_raw_map() -> None:
    explainer = Explainer(network(), threads=1)
    (picture,) = pictures(1)
    tensor, _ = explainer.preprocess(onnxcam.load_picture(picture))
    assert np.array_equal(explainer.explain_tensor(tensor, 3)[0].raw, explainer(picture, 3).raw)


def test_provenance_names_the_very_files_versions_and_choices(tmp_path: Path) -> None:
    model_path, picture_path = tmp_path / "network.onnx", tmp_path / "dog.png"
    onnx.save(network(), model_path)
    Image.fromarray(pictures(1)[0]).save(picture_path)
    explanation = Explainer(model_path, labels=LABELS, threads=1)(picture_path, "kind 3")
    record = json.loads(json.dumps(explanation.record()))
    p = record["provenance"]
    assert p["model"] == {"name": "network.onnx", "sha256": hashlib.sha256(model_path.read_bytes()).hexdigest()}
    assert p["picture"] == {
        "source": str(picture_path),
        "sha256": hashlib.sha256(picture_path.read_bytes()).hexdigest(),
    }
    assert (p["method"], p["layer"], p["score"], p["normalize"], p["target"]) == ("gradcam", "a", "logit", "minmax", 3)
    assert (p["output"], p["logits"], p["threads"], p["providers"]) == ("y", "z", 1, ["CPUExecutionProvider"])
    assert p["versions"]["onnxcam"] == onnxcam.__version__ and p["versions"]["numpy"] == np.__version__
    assert p["versions"]["onnx"] == onnx.__version__ and "onnxruntime" in p["versions"]
    assert "the final Softmax is stepped over: the class logit is explained" in p["notes"]


def test_an_explanation_can_be_made_again_from_its_provenance() -> None:
    (picture,) = pictures(1)
    changed = {"fit": "letterbox", "mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    first = Explainer(
        network(), method="hirescam", layer="i", score="probability", normalize="max", preprocess=changed, threads=1
    )(picture, 2)
    p = json.loads(json.dumps(first.record()))["provenance"]
    again = Explainer(
        network(),
        method=p["method"],
        layer=p["layer"],
        score=p["score"],
        output=p["output"],
        normalize=p["normalize"],
        preprocess=Preprocess.from_json(p["preprocess"]),
        providers=p["providers"],
        threads=p["threads"],
    )(picture, p["target"])
    assert np.array_equal(again.values, first.values) and again.score == first.score


def test_provenance_says_when_the_class_was_the_predicted_one() -> None:
    explainer = Explainer(network(), threads=1)
    (picture,) = pictures(1)
    assert explainer(picture).provenance["target"] == "predicted"
    assert explainer(picture, -1).provenance["target"] == "predicted"
    assert explainer(picture, explainer(picture).class_index).provenance["target"] == explainer(picture).class_index


def test_representations_are_one_line_that_names_what_matters() -> None:
    explainer = Explainer(network(), labels=["two\nlines", *LABELS[1:]], threads=1)
    e = explainer(pictures(1)[0], 0)
    assert repr(explainer) == "<Explainer <ModelProto>: gradcam at 'a', 5 classes>"
    height, width = e.values.shape
    state = e.warnings[0] if e.warnings else f"peak at {e.peak}"
    expected = f"<Explanation 'two\\nlines' {e.probability:.1%}: gradcam at 'a', {width}x{height}, {state}>"
    assert repr(e) == expected and "\n" not in repr(e)


def test_choices_made_for_the_user_are_logged_once_and_nothing_is_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "onnxcam"):
        explainer = Explainer(network(), threads=1)
        for picture in pictures(3):
            explainer(picture)
    logged = [r.getMessage() for r in caplog.records]
    assert [m for m in logged if "chosen" in m] == ["<ModelProto>: layer `a` chosen: the last spatial map"]
    assert len(logged) == len(set(logged)) == len(explainer.notes)
    assert capfd.readouterr() == ("", "")


def test_saved_values_load_without_pickle(tmp_path: Path) -> None:
    e = Explainer(network(), threads=1)(pictures(1)[0], 1)
    assert np.array_equal(np.load(e.save(tmp_path / "map.npy"), allow_pickle=False), e.values)


def test_a_map_without_picture_has_no_overlay() -> None:
    (e,) = Explainer(network(), threads=1).explain_tensor(np.zeros((1, 3, 24, 24), np.float32), 1)
    with pytest.raises(UsageError, match="there is no picture to lay the map over"):
        e.overlay()


def test_changing_what_was_given_does_not_change_the_explainer() -> None:
    model, labels = network(), list(LABELS)
    explainer = Explainer(model, labels=labels, threads=1)
    (picture,) = pictures(1)
    before = explainer(picture, 1)
    model.Clear()
    labels.clear()
    after = explainer(picture, "kind 1")
    assert np.array_equal(after.values, before.values) and after.label == "kind 1"


def test_an_explanation_does_not_change_with_later_ones_or_with_its_picture() -> None:
    explainer = Explainer(network(), threads=1)
    first, second = pictures(2)
    e = explainer(first, 1)
    values = e.values.copy()
    explainer(second, 1)
    overlay = np.asarray(e.overlay()).copy()
    first[:] = 0
    assert np.array_equal(e.values, values) and np.array_equal(np.asarray(e.overlay()), overlay)


def test_explain_is_the_explainer_in_one_call() -> None:
    (picture,) = pictures(1)
    once = onnxcam.explain(network(), picture, 2, method="hirescam", threads=1)
    assert np.array_equal(once.values, Explainer(network(), method="hirescam", threads=1)(picture, 2).values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"providers": "cpu"}, "providers 'cpu' are no list of names"),
        ({"providers": [3]}, r"providers \[3\] are no list of names"),
        ({"provider_options": {"device_id": 1}}, "provider options are no list of dictionaries"),
        ({"provider_options": [{}, {}]}, r"2 provider options for 1 provider\(s\)"),
        ({"runtime": "openvino", "providers": ["CPU", "GPU"]}, "OpenVINO runs on one device, not 2"),
    ],
    ids=lambda v: str(v),
)
def test_providers_that_are_no_list_of_names_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Explainer(FOLDER / "demo.onnx", **options)
