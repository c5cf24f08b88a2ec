"""Loading: checked, cleaned, inlined, lifted and compared with the original."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxcam import Explainer, rewrite
from onnxcam.errors import ModelError, UnsupportedError, VerificationError
from onnxcam.explained import run_once
from onnxcam.graph import load as loading
from onnxcam.graph.load import load
from onnxcam.graph.read import read
from onnxcam.graph.signature import image_input
from onnxcam.runtime import Session

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)


def run_in_ort(model: ModelProto, outputs: list[str] | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"x": X})


def classifier(opset: int, ir: int = 8) -> ModelProto:
    """Conv, BatchNormalization, Relu, Pad, MaxPool, ReduceMean over axes as its opset spells them, Gemm, Softmax."""
    pads = [0, 0, 0, 0, 0, 0, 1, 1]
    old_pad, old_squeeze = opset < 11, opset < 13
    nodes = [
        helper.make_node("Conv", ["x", "w", "wb"], ["c"], kernel_shape=[3, 3], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["a"], name="act"),
        helper.make_node("Pad", ["a"], ["q"], pads=pads) if old_pad else helper.make_node("Pad", ["a", "pads"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("ReduceMean", ["p"], ["r"], axes=[2, 3], keepdims=1),
        helper.make_node("Squeeze", ["r"], ["f"], axes=[2, 3])
        if old_squeeze
        else helper.make_node("Squeeze", ["r", "axes"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "b"], ["z"], transB=1),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    if opset >= 18:
        nodes[5] = helper.make_node("ReduceMean", ["p", "axes"], ["r"])
    rng = np.random.default_rng(7)
    arrays = {
        "w": rng.normal(size=(4, 3, 3, 3)), "wb": rng.normal(size=4), "s": rng.uniform(0.5, 2, 4),
        "o": rng.normal(size=4), "m": rng.normal(size=4), "v": rng.uniform(0.5, 2, 4),
        "g": 0.1 * rng.normal(size=(5, 4)), "b": rng.normal(size=5),
    }  # fmt: skip
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    if not old_pad:
        weights.append(numpy_helper.from_array(np.array(pads, np.int64), "pads"))
    if not old_squeeze:
        weights.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    if ir < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.mark.parametrize("opset", range(7, 23))
def test_the_rewritten_model_has_a_supported_opset_and_the_same_outputs(opset: int) -> None:
    model = classifier(opset)
    (expected,) = run_in_ort(model)
    rewritten = rewrite(model)
    onnx.checker.check_model(rewritten, full_check=False)
    assert rewritten.opset_import[0].version == max(18, opset)
    assert rewritten.ir_version == 8
    got = Session(rewritten, threads=1).run({"x": X, "class_index": np.array([-1])})
    np.testing.assert_allclose(got["y"], expected, rtol=1e-5, atol=1e-6)
    assert got["onnxcam_index"].tolist() == expected.argmax(1).tolist()


def test_lifting_is_told_and_a_modern_model_has_nothing_to_tell() -> None:
    assert "opset 9 lifted to 18" in Explainer(classifier(9)).notes
    assert not any("lifted" in n for n in Explainer(classifier(18)).notes)


@pytest.mark.parametrize("opset", [8, 9])
def test_ir_3_models_with_weights_among_their_inputs_are_explained_like_later_ones(opset: int) -> None:
    old, new = Explainer(classifier(opset, ir=3), threads=1), Explainer(classifier(18), threads=1)
    for a, b in zip(old.explain_tensor(X, 2), new.explain_tensor(X, 2), strict=True):
        np.testing.assert_allclose(a.raw, b.raw, rtol=1e-5, atol=1e-6)
    assert [i.name for i in rewrite(classifier(opset, ir=3)).graph.input] == ["x", "class_index"]


def graph_of(model: ModelProto) -> loading.Graph:
    file = read(model)
    image = image_input(file.model, file.name)
    return load(file, {image.name: image.bound((8, 8))}, run_once(file, image, (8, 8)))


def test_a_lift_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = loading.version_converter.convert_version

    def careless(model: ModelProto, version: int) -> ModelProto:
        lifted = honest(model, version)
        next(n for n in lifted.graph.node if n.op_type == "BatchNormalization").attribute[0].f = 0.1
        return lifted

    monkeypatch.setattr(loading.version_converter, "convert_version", careless)
    with pytest.raises(VerificationError, match="lifting opset 13 to 18 changed output `y`: they differ by") as error:
        graph_of(classifier(13))
    assert error.value.exit_code == 1 and "opset 18 or newer" in error.value.hint


def test_a_lift_that_changes_the_shape_of_an_output_is_refused() -> None:
    calls = []

    def run(model: ModelProto) -> list[np.ndarray]:
        calls.append(model)
        return [np.zeros((1, 5 if len(calls) == 1 else 6), np.float32)]

    with pytest.raises(VerificationError, match=re.escape("(1, 5) became (1, 6)")):
        load(read(classifier(13)), None, run)


def test_a_lift_that_makes_numbers_of_nan_is_refused() -> None:
    answers = iter([np.full((1, 5), np.nan, np.float32), np.zeros((1, 5), np.float32)])
    with pytest.raises(VerificationError, match="changed output `y`"):
        load(read(classifier(13)), None, lambda _: [next(answers)])


def test_without_a_runtime_an_old_opset_is_refused_rather_than_trusted() -> None:
    with pytest.raises(VerificationError, match="opset 13 was lifted to 18 but cannot be compared"):
        load(read(classifier(13)))
    load(read(classifier(18)))


def test_a_model_that_cannot_be_lifted_names_opset_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("No Adapter For Version 7 for Upsample\nmore")

    monkeypatch.setattr(loading.version_converter, "convert_version", refuse)
    with pytest.raises(UnsupportedError, match="opset 13 cannot be lifted to 18: No Adapter For Version 7") as error:
        graph_of(classifier(13))
    assert "\n" not in error.value.message and error.value.exit_code == 4


GROUPS = """<ir_version: 8, opset_import: ["" : {0} {1}]> g (float[N,4,4,4] x) => (float[N,2] y)
    <float[{2}] s = {{2, -3{3}}}, float[{2}] b = {{0.5, 1{3}}},
     float[2,4] w = {{1, 2, -3, 4, 0, 1, 5, -2}}, bool c = {{1}}>
    {{ {4} p = GlobalMaxPool(n) f = Flatten(p) y = Gemm<transB=1>(f, w) }} {5}"""
NORM = "n = GroupNormalization<num_groups=2, epsilon=0.01>(x, s, b)"
IN_BRANCH = f"n = If(c) <then_branch = t () => (float[N,4,4,4] n1) {{ {NORM.replace('n =', 'n1 =')} }}, "
IN_BRANCH += "else_branch = e () => (float[N,4,4,4] n2) { n2 = Relu(x) }>"
PLACES = {
    "graph": (NORM, "", ""),
    "branch": (IN_BRANCH, "", ""),
    "function": (
        "n = local.norm(x, s, b)",
        ', "local" : 1',
        f'<domain: "local", opset_import: ["" : 18]> norm (x, s, b) => (n) {{ {NORM} }}',
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opset", [18, 20, 21])
def test_group_normalization_that_the_checker_calls_deprecated_is_loaded_and_differentiated(
    opset: int, place: str
) -> None:
    """From opset 18 to 20 scale and bias are per group, later per channel."""
    body, domains, functions = PLACES[place]
    per_channel = opset >= 21
    functions = functions.replace("18]", f"{opset}]")
    text = GROUPS.format(opset, domains, 4 if per_channel else 2, ", 7, 11" if per_channel else "", body, functions)
    model = parser.parse_model(text)
    x = np.random.default_rng(8).normal(size=(1, 4, 4, 4))
    w = np.array([1, 2, -3, 4])
    scale = np.array([2, -3, 7, 11.0] if per_channel else [2, 2, -3, -3.0]).reshape(4, 1, 1)
    bias = np.array([0.5, 1, 7, 11] if per_channel else [0.5, 0.5, 1, 1]).reshape(4, 1, 1)

    def score(v: np.ndarray) -> float:
        grouped = v.reshape(2, 2, 4, 4)
        centred = grouped - grouped.mean((1, 2, 3), keepdims=True)
        n = centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + 0.01)
        return float(w @ (n.reshape(4, 4, 4) * scale + bias).max((1, 2)))

    explainer = Explainer(model, method="inputxgradient", threads=1)
    (explanation,) = explainer.explain_tensor(x.astype(np.float32), 0)
    assert explanation.score == pytest.approx(score(x), rel=1e-5)
    step, gradient = 1e-6, np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        e = np.zeros(x.shape)
        e[i] = step
        gradient[i] = (score(x + e) - score(x - e)) / (2 * step)
    np.testing.assert_allclose(explanation.raw, (x * gradient)[0].sum(0), rtol=1e-4, atol=1e-4)


def test_model_local_functions_are_inlined_and_differentiated() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[N,3,8,8] x) => (float[N,2] y) <float[2,3] w = {1, 2, 3, -1, 0, 1}>
        {
            a = local.twice<factor=3.0>(x)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w)
        }
        <domain: "local", opset_import: ["" : 18]>
        twice<factor>(t) => (r)
        {
            k = Constant<value_float: float = @factor>()
            s = Mul(t, k)
            r = Relu(s)
        }"""
    explainer = Explainer(parser.parse_model(text), threads=1)
    assert "model-local functions inlined" in explainer.notes
    (explanation,) = explainer.explain_tensor(X[:1], 0)
    weights = np.array([1, 2, 3]) / 64
    np.testing.assert_allclose(explanation.raw, np.tensordot(weights, np.maximum(3 * X[0], 0), 1), rtol=1e-5, atol=1e-6)


def test_constant_nodes_of_every_form_are_found_as_constants() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N,3,8,8] x) => (float[N,3,8,8] y, float c)
        {
            t = Constant<value = float[2] {1.5, 2.5}>()
            f = Constant<value_float = 0.5>()
            fs = Constant<value_floats = [0.5, 1.5]>()
            i = Constant<value_int = 3>()
            is = Constant<value_ints = [3, 4]>()
            c = Constant<value_float = 7.0>()
            y = Mul(x, f)
        }"""
    graph = load(read(parser.parse_model(text)))
    expected = {"t": [1.5, 2.5], "f": 0.5, "fs": [0.5, 1.5], "i": 3, "is": [3, 4], "c": 7.0}
    assert {v: graph.constant(v).tolist() for v in expected} == expected
    assert [n.op_type for n in graph.nodes] == ["Constant", "Mul"]  # the output `c` keeps its node
    assert graph.constant("i").dtype == np.int64 and graph.constant("f").dtype == np.float32


def broken(change: str) -> ModelProto:
    model = classifier(18)
    nodes = model.graph.node
    if change == "an operator that does not exist":
        nodes[2].op_type = "Rellu"
    elif change == "an input that nothing makes":
        nodes[2].input[0] = "nowhere"
    elif change == "nodes out of order":
        first = nodes[0]
        copy = onnx.NodeProto()
        copy.CopyFrom(first)
        del nodes[0]
        nodes.append(copy)
    elif change == "a name made twice":
        nodes[2].output[0] = "c"
    elif change == "a wrong attribute":
        nodes[7].attribute.append(helper.make_attribute("transQ", 1))
    return model


CHANGES = [
    "an operator that does not exist", "an input that nothing makes", "nodes out of order", "a name made twice",
    "a wrong attribute",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_the_checker_refuses_is_a_model_error_of_one_line(change: str) -> None:
    load(read(broken("nothing")))
    with pytest.raises(ModelError, match="is not a valid ONNX model: ") as error:
        load(read(broken(change)))
    assert "\n" not in error.value.message and error.value.hint


def large(rows: int = 64) -> ModelProto:
    """A classifier whose linear layer is too large to be a small constant."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N,3,8,8] x) => (float[N,{rows}] y)
        {{
            a = Relu(x)
            f = Flatten(a)
            y = Gemm<transB=1>(f, w)
        }}""")
    w = np.random.default_rng(3).normal(size=(rows, 192)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return model


def test_a_weight_with_bytes_missing_is_named_with_both_sizes() -> None:
    model = large()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match=r"weight `w` holds 49,148 bytes where its shape \(64, 192\) needs 49,152"):
        load(read(model))


@pytest.mark.parametrize("small", [True, False])
def test_a_weight_of_unknown_type_is_a_model_error(small: bool) -> None:
    model = classifier(18) if small else large()
    model.graph.initializer[0].data_type = 99
    with pytest.raises(ModelError, match="weight `w` has the unknown type 99"):
        load(read(model))


def saved_beside(folder: Path, location: str = "weights.bin") -> tuple[Path, ModelProto]:
    model = large()
    path = folder / "model.onnx"
    whole = ModelProto()
    whole.CopyFrom(model)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path, whole


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_external_data_beside_the_file_are_used_from_any_working_folder(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = saved_beside(tmp_path)
    assert path.stat().st_size < 1000
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (inline,) = Explainer(whole, method=method, threads=1).explain_tensor(X[:1], 5)
    (beside,) = Explainer(path, method=method, threads=1).explain_tensor(X[:1], 5)
    assert np.array_equal(beside.raw, inline.raw) and beside.score == inline.score
    assert beside.raw.any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "model.onnx", "weights.bin"]


def test_external_data_in_a_folder_below_are_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path, whole = saved_beside(tmp_path, "data/weights.bin")
    (inline,), (below,) = (Explainer(m, threads=1).explain_tensor(X[:1], 5) for m in (whole, path))
    assert np.array_equal(below.raw, inline.raw)


def test_external_data_that_are_too_short_are_a_model_error(tmp_path: Path) -> None:
    path, _ = saved_beside(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError):
        Explainer(path)


def test_external_data_end_to_end_through_a_lifted_opset(tmp_path: Path) -> None:
    model = large()
    model.opset_import[0].version = 13
    whole = ModelProto()
    whole.CopyFrom(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (inline,), (beside,) = (Explainer(m, threads=1).explain_tensor(X[:1], 5) for m in (whole, path))
    assert np.array_equal(beside.raw, inline.raw)
