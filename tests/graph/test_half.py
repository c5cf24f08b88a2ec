"""float16 models that compute in float32: the weights stay float16; against the same formula in float64."""

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxcam import Explainer, export
from onnxcam.errors import UsageError
from onnxcam.graph.half import in_float32
from onnxcam.graph.index import Graph
from onnxcam.graph.load import load
from onnxcam.graph.read import read
from onnxcam.runtime import Session

RNG = np.random.default_rng(3)
W = (RNG.integers(-8, 9, (8, 3, 3, 3)) / 16).astype(np.float16)
B = (RNG.integers(-8, 9, 8) / 16).astype(np.float16)
V = (RNG.integers(-8, 9, (2, 16)) / 16).astype(np.float16)
X = RNG.uniform(-2, 2, (2, 3, 9, 9)).astype(np.float16)

BODY = """c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  l = LeakyRelu<alpha=0.25>(c)  k = Concat<axis=1>(r, l)
    two = Constant<value = float16 {16384}>()  d = Mul(k, two)  h = Cast<to=10>(d)
    p = GlobalAveragePool(h)  f = Flatten(p)  y = Gemm<transB=1>(f, v)  s = Softmax<axis=1>(y)"""


def model(body: str = BODY, opset: int = 13, outputs: str = "float16[N,2] s", **weights: np.ndarray) -> ModelProto:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float16[N,3,9,9] x) => ({outputs})'
    made = parser.parse_model(f"{header} {{ {body} }}")
    for name, array in (weights or {"w": W, "b": B, "v": V}).items():
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def by_hand(x: np.ndarray) -> np.ndarray:
    """The network in float64, its weights float16."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    c = np.einsum("nchwij,kcij->nkhw", windows, W.astype(np.float64)) + B.astype(np.float64)[:, None, None]
    k = np.concatenate([np.maximum(c, 0), np.where(c < 0, 0.25 * c, c)], 1) * 2
    y = np.exp(k.mean((2, 3)) @ V.astype(np.float64).T)
    return y / y.sum(1, keepdims=True)


def dtypes(proto: ModelProto) -> collections.Counter[int]:
    graph = Graph(proto)
    return collections.Counter(graph.dtype(o) for n in graph.nodes for o in n.outputs)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_it_computes_in_float32_and_its_file_stays_float16(opset: int) -> None:
    source = model(opset=opset)
    wide = in_float32(source)
    assert wide is not None
    onnx.checker.check_model(wide, full_check=True)
    assert dtypes(wide) == {TensorProto.FLOAT: 14, TensorProto.FLOAT16: 1}  # x, w, v and eleven nodes; the output
    kept = {t.name: t for t in wide.graph.initializer}
    assert all(kept[name] == t for t in source.graph.initializer if (name := t.name) != "b")  # vectors are converted
    assert list(wide.graph.input) == list(source.graph.input)
    assert list(wide.graph.output) == list(source.graph.output)
    (got,) = ReferenceEvaluator(wide).run(None, {"x": X})
    assert got.dtype == np.float16
    assert np.array_equal(got, by_hand(X).astype(np.float16))


def test_the_source_is_left_alone() -> None:
    source = model()
    before = source.SerializeToString(deterministic=True)
    in_float32(source)
    assert source.SerializeToString(deterministic=True) == before


def test_what_types_depend_on_is_widened_too() -> None:
    body = """shape = Shape(x)  ones = ConstantOfShape<value = float16[1] {15360}>(shape)  u = Add(x, ones)
        e = CastLike(u, x)  q = EyeLike<dtype=10>(m)  t = MatMul(u, q)  y = Mul(t, e)"""
    source = model(body, 18, "float16[N,3,9,9] y", m=np.zeros((9, 9), np.float16))
    wide = in_float32(source)
    assert wide is not None
    onnx.checker.check_model(wide, full_check=True)
    assert dtypes(wide)[TensorProto.FLOAT16] == 1
    (got,) = ReferenceEvaluator(wide).run(None, {"x": X})
    np.testing.assert_array_equal(got, ((X.astype(np.float32) + 1) ** 2).astype(np.float16))


def test_names_that_the_model_has_already_stay_its_own() -> None:
    source = model("a = Neg(x)  z = Relu(a)  c = Neg(z)  y = Add(c, x)", 18, "float16[N,3,9,9] y", w=W)
    names = {"a": "x/float32", "c": "y/float32"}
    for node in source.graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
    wide = in_float32(source)
    assert wide is not None
    onnx.checker.check_model(wide, full_check=True)
    (got,) = ReferenceEvaluator(wide).run(None, {"x": X})
    np.testing.assert_array_equal(got, X - np.maximum(-X, 0))


def test_an_input_that_is_an_output_passes_through() -> None:
    source = model("y = Relu(x)", 18, "float16[N,3,9,9] x, float16[N,3,9,9] y", w=W)
    wide = in_float32(source)
    assert wide is not None
    same, got = ReferenceEvaluator(wide).run(None, {"x": X})
    assert np.array_equal(same, X) and np.array_equal(got, np.maximum(X, 0))


INNER = parser.parse_graph("b () => (float16[N,3,9,9] z) { z = Relu(x) }")
OTHERS = {
    "branches": onnx.helper.make_node("If", ["flag"], ["y"], then_branch=INNER, else_branch=INNER),
    "another domain": onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_branches_and_operators_of_other_domains_are_left_in_float16(kind: str) -> None:
    source = model("y = Relu(x)", 18, "float16[N,3,9,9] y", w=W, flag=np.array(True))
    assert in_float32(source) is not None
    source.graph.node[0].CopyFrom(OTHERS[kind])
    assert in_float32(source) is None
    if kind == "branches":  # with a condition that is an input: known ones are folded before
        del source.graph.initializer[-1]
        source.graph.input.append(onnx.helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    else:
        source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    (note,) = load(read(source), float32=True).notes
    assert "float16 stays" in note


# --- in the product -----------------------------------------------------------------------------------------------


def run(proto: ModelProto) -> list[np.ndarray]:
    return list(Session(proto, threads=1).run({"x": X}).values())


@pytest.mark.parametrize(("opset", "asked", "widened"), [
    (13, None, True), (13, False, False), (13, True, True), (18, None, False), (18, True, True), (21, False, False),
])  # fmt: skip
def test_only_lifted_models_are_widened_unless_asked(opset: int, asked: bool | None, widened: bool) -> None:
    graph = load(read(model(opset=opset)), run=run, float32=asked)
    assert any("computed in float32" in note for note in graph.notes) is widened
    assert (graph.dtype("r") == TensorProto.FLOAT) is widened
    assert graph.dtype("s") == TensorProto.FLOAT16


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_a_lifted_model_predicts_bit_for_bit_as_before(opset: int) -> None:
    """ONNX Runtime leaves out the same roundings."""
    drawn = {"w": RNG.normal(size=W.shape), "b": RNG.normal(size=B.shape), "v": RNG.normal(size=(60, 16))}
    weights = {name: array.astype(np.float16) for name, array in drawn.items()}
    source = model(BODY, opset, "float16[N,60] s, float16[N,60] y", **weights)
    graph = load(read(source), run=run)
    for plain, lifted in zip(run(source), run(graph.complete(graph.model)), strict=True):
        assert np.array_equal(plain, lifted)


def test_its_map_is_that_of_the_formula() -> None:
    explained = Explainer(model(), layer="r", normalize="none", threads=1).explain_tensor(X, 1)
    padded = np.pad(X.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    c = np.einsum("nchwij,kcij->nkhw", windows, W.astype(np.float64)) + B.astype(np.float64)[:, None, None]
    weights = 2 * V[1, :8].astype(np.float64) / 81
    expected = np.maximum(np.einsum("k,nkhw->nhw", weights, np.maximum(c, 0)), 0)
    np.testing.assert_allclose(np.stack([e.values for e in explained]), expected, atol=1e-6)


def test_weights_beside_the_file_are_cast_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    inside, beside = (Explainer(m, layer="r", threads=1).explain_tensor(X, 1) for m in (model(), path))
    for a, b in zip(inside, beside, strict=True):
        assert np.array_equal(a.values, b.values)


@pytest.mark.parametrize(
    ("providers", "asked", "given"),
    [(None, None, None), (["cpu"], None, None), (["cuda"], None, False), (["cuda"], True, True), (None, False, False)],
)
def test_other_providers_than_the_cpu_keep_float16_unless_asked(
    providers: list[str] | None, asked: bool | None, given: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, float32: bool | None, **__: object) -> None:
        assert float32 is given
        raise UsageError("that is all", "")

    monkeypatch.setattr("onnxcam.explainer.open_graph", opened)
    with pytest.raises(UsageError, match="that is all"):
        Explainer(model(), providers=providers, float32=asked)


@pytest.mark.parametrize(("opset", "float32"), [(13, None), (13, False), (18, None), (18, True)])
def test_exports_compute_in_float32_or_not_and_keep_inputs_and_outputs(
    tmp_path: Path, opset: int, float32: bool | None
) -> None:
    onnx.save(model(opset=opset), tmp_path / "m.onnx")
    done = export(tmp_path / "m.onnx", tmp_path / "e.onnx", layer="r", float32=float32, threads=1)
    graph = Graph(onnx.load(tmp_path / "e.onnx"))
    wide = float32 or (float32 is None and opset < 18)
    assert graph.dtype("r") == (TensorProto.FLOAT if wide else TensorProto.FLOAT16)
    assert graph.dtype("x") == graph.dtype("s") == TensorProto.FLOAT16
    assert done.check is not None and done.check.heatmap < 1e-5
    if opset < 18 and wide:
        assert done.check.identical
