"""Damaged files at every way in: only designed errors come out. The long run is `python -m benchmarks.fuzz`."""

import time

import numpy as np
import pytest
import seeds
from benchmarks.fuzz import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged
from onnx import TensorProto, helper, numpy_helper
from surfaces import SURFACES, attempt

from onnxcam.audit.records import read_records, read_run
from onnxcam.errors import ModelError, OutputError, PictureError, UnsupportedError, UsageError
from onnxcam.explainer import Explainer
from onnxcam.graph.beside import beside
from onnxcam.graph.index import Graph
from onnxcam.graph.read import read
from onnxcam.jsontext import DEPTH, parsed_json
from onnxcam.metrics.evaluation import read_boxes
from onnxcam.npy import read_npy
from onnxcam.picture import load_picture
from onnxcam.presets import preset, read_labels

QUICK = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.mark.parametrize("surface", [s for s in SURFACES if s != "models"])
@QUICK
@given(number=st.integers(0, 2**32))
def test_damaged_files_raise_designed_errors_only(surface: str, number: int) -> None:
    attempt(surface, number)


def test_damaged_models_raise_designed_errors_only_and_kill_no_process() -> None:
    """In a process of its own: ONNX Runtime is native code."""
    counts, faults = fuzz("models", seconds=60, first=7_000, cases=20)
    assert faults == []
    assert sum(counts.values()) == 20


def test_the_fuzzer_sees_what_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(rng: object, folder: object) -> None:
        raise KeyError("x")

    monkeypatch.setitem(SURFACES, "careless", careless)
    with pytest.raises(KeyError):
        attempt("careless", 0)


# --- what the fuzzer found, one case each ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * (DEPTH + 2) + "]" * (DEPTH + 2), "NaN", "[-Infinity]", "1e999", "1" * 5000, str(2**63), "{"],
)
def test_json_that_could_surprise_later_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"deep|is no JSON|too large|beyond 64 bits|Expecting"):
        parsed_json(text)


def test_json_at_the_limits_is_taken() -> None:
    assert parsed_json("[" * DEPTH + "]" * DEPTH)
    assert parsed_json(f"[{2**63 - 1}, {-(2**63)}, 1e308]") == [2**63 - 1, -(2**63), 1e308]


def test_yaml_with_aliases_is_refused_before_it_grows(tmp_path) -> None:
    pytest.importorskip("yaml")
    lines = ["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 25))]
    (tmp_path / "p.yaml").write_text("\n".join([*lines, "size: *a24"]))
    with pytest.raises(UsageError, match="aliases"):
        preset(tmp_path / "p.yaml")


def test_yaml_nested_deeply_is_refused_at_once(tmp_path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "p.yaml").write_text('{"size":' * 200_000)
    begun = time.process_time()
    with pytest.raises(UsageError, match="more than 64 levels"):
        preset(tmp_path / "p.yaml")
    assert time.process_time() - begun < 2


def test_yaml_makes_no_python_objects(tmp_path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "p.yaml").write_text(f"size: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(UsageError, match="is not YAML"):
        preset(tmp_path / "p.yaml")
    assert not (tmp_path / "made").exists()


def test_boxes_nested_deeply_are_a_usage_error(tmp_path) -> None:
    (tmp_path / "b.json").write_text('{"a":' * 5000)
    with pytest.raises(UsageError, match="deep"):
        read_boxes(tmp_path / "b.json")


@pytest.mark.parametrize("names", [3, True, [["a"]], {"a": 1}])
def test_labels_that_are_none_are_a_usage_error(tmp_path, names: object) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps({"label_names": names, "label_descriptions": 7}))
    with pytest.raises(UsageError, match="label_names"):
        read_labels(tmp_path / "config.json")


def test_a_pickle_or_a_zip_is_no_npy_file(tmp_path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", np.ones(3))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': ")
    for name in ("o.npy", "z.npy", "cut.npy", "missing.npy"):
        with pytest.raises(ValueError):
            read_npy(tmp_path / name)
        model = seeds.convolutional()
        model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
        with pytest.raises(UsageError, match=r"no \.npy file"):
            beside(model, "m", "x", {"other": str(tmp_path / name)})


def _damage(change) -> bytes:
    model = seeds.convolutional()
    change(model.graph)
    return model.SerializeToString()


def _reads_itself(graph) -> None:
    graph.node[0].input[0] = "c"


def _cut_weight(graph) -> None:
    graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-1]


def _negative(graph) -> None:
    graph.initializer[0].dims[0] = -5


def _unknown_type(graph) -> None:
    graph.initializer[0].data_type = 4096


def _unknown_input(graph) -> None:
    graph.input[0].type.tensor_type.elem_type = 4096


def _twice(graph) -> None:
    graph.node[1].output[0] = "c"


def _list_without_values(graph) -> None:
    tensor = graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0])


def _no_input(graph) -> None:
    del graph.node[1].input[:]


def _no_kernel_shape(graph) -> None:
    del graph.node[2].attribute[:]


def _attribute_of_another_type(graph) -> None:
    graph.node[0].attribute[0].type = 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_no_input, "Relu node `` has 0 inputs and 1 outputs"),
        (_no_kernel_shape, "MaxPool node `` lacks the attribute `kernel_shape`"),
        (_attribute_of_another_type, "Conv node `` has an attribute `.*` of another type"),
        (_reads_itself, "reads `c` before it is made"),
        (_cut_weight, "weight `w` holds 539 bytes where its shape"),
        (_negative, r"weight `w` has the shape \(-5, 3, 3, 3\)"),
        (_unknown_type, "weight `w` has the unknown type 4096"),
        (_unknown_input, "input `x` has the unknown type 4096"),
        (_twice, "two nodes make `c`"),
        (_list_without_values, "weight `w` holds 2 values"),
    ],
)
def test_a_damaged_model_is_refused_by_name(change, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Explainer(_damage(change))


@pytest.mark.parametrize("text", [b"Softmax", b"cond", b"twice", b"then_branch"])
def test_names_that_are_no_text_are_refused(text: bytes) -> None:
    data = (seeds.branching() if text != b"Softmax" else seeds.convolutional()).SerializeToString()
    with pytest.raises(ModelError, match="no UTF-8"):
        read(data.replace(text, b"\xff" + text[1:]))


def test_an_opset_that_is_no_version_is_refused() -> None:
    model = seeds.convolutional()
    model.opset_import[0].version = 2**40
    with pytest.raises(ModelError, match="opset"):
        read(model)


def test_an_input_too_large_to_try_is_refused_before_it_is_made() -> None:
    model = seeds.convolutional()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(UnsupportedError, match="more than 67,108,864"):
        Explainer(model)


def test_a_constant_that_cannot_be_computed_is_a_model_error() -> None:
    model = seeds.convolutional()
    left, right = (numpy_helper.from_array(np.ones((2, 3), np.float32), n) for n in ("left", "right"))
    model.graph.initializer.extend([left, right])
    model.graph.node.append(helper.make_node("MatMul", ["left", "right"], ["never"]))
    with pytest.raises(ModelError, match="constant `never` cannot be computed"):
        Graph(model).constant("never")


@pytest.mark.parametrize(
    ("field", "value"), [("region", [5, 0, 5, 20]), ("files", []), ("picture", True), ("top", {}), ("size", [0, 30])]
)
def test_a_record_that_no_run_wrote_is_refused_by_name(tmp_path, field: str, value: object) -> None:
    import json

    files = seeds.audit()
    lines = [json.loads(text) for text in files["out/records.jsonl"].splitlines()]
    lines[0][field] = value
    (tmp_path / "run.json").write_bytes(files["out/run.json"])
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(OutputError, match=r"the record of `0\.png` lacks fields"):
        list(read_records(tmp_path))


def test_a_header_that_no_run_wrote_is_refused(tmp_path) -> None:
    import json

    header = json.loads(seeds.audit()["out/run.json"])
    (tmp_path / "run.json").write_text(json.dumps({**header, "provenance": 3}))
    with pytest.raises(UsageError, match="not those of an audit"):
        read_run(tmp_path)


def test_signalling_nan_pixels_are_a_picture_error() -> None:
    pixels = np.full((4, 4), 0x7F800001, np.uint32).view(np.float32)
    with pytest.raises(PictureError, match=r"expected 0\.\.1"):
        load_picture(pixels)


def test_damage_is_damage() -> None:
    """The mutations change what they are given, mostly."""
    from random import Random

    data = seeds.models()[0]
    assert sum(damaged(data, Random(i)) != data for i in range(50)) > 40
