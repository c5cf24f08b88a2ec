"""If nodes whose condition is known: replaced by the branch that runs, all others left and refused."""

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, parser

from onnxcam import Explainer
from onnxcam.errors import UnsupportedOperatorError
from onnxcam.graph.index import Graph
from onnxcam.graph.load import load
from onnxcam.graph.read import read

X = np.random.default_rng(4).normal(size=(2, 3, 8, 8)).astype(np.float32)


def model(body: str, opset: int = 18, weights: str = "") -> ModelProto:
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]> g (float[N,3,H,W] x) => (float[N,4] y)
        <float[4,3] v = {{1, 2, 3, 4, -5, 6, 7, 8, 9, 10, 11, -12}}, bool yes = {{1}}, bool no = {{0}},
         float[3,1,1] k = {{2, 0.5, -1}} {weights}>
        {{ {body} }}""")


END = "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm<transB=1>(f, v)"


def run_in_ort(proto: ModelProto, x: np.ndarray = X) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    runtime = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return runtime.run(None, {"x": x})[0]


def folded(proto: ModelProto, size: tuple[int, int] = (8, 8)) -> Graph:
    """The loaded graph; it is a valid model, and computes bit for bit what the model did."""
    graph = load(read(proto), {"x": ["N", 3, *size]})
    whole = graph.complete(graph.model)
    checker.check_model(whole, full_check=True)
    x = np.random.default_rng(5).normal(size=(2, 3, *size)).astype(np.float32)
    assert np.array_equal(run_in_ort(whole, x), run_in_ort(proto, x))
    return graph


def kinds(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


BRANCHES = """a = If ({0}) <
    then_branch = t () => (float[N,3,H,W] b) {{ c = Mul(x, k) b = Relu(c) }},
    else_branch = e () => (float[N,3,H,W] b) {{ c = Neg(x) b = Sigmoid(c) }}> """


@pytest.mark.parametrize(("condition", "ops"), [("yes", ["Mul", "Relu"]), ("no", ["Neg", "Sigmoid"])])
def test_the_branch_that_runs_takes_the_place_of_an_if_with_a_constant_condition(
    condition: str, ops: list[str]
) -> None:
    graph = folded(model(BRANCHES.format(condition) + END))
    assert kinds(graph) == [*ops, "GlobalAveragePool", "Flatten", "Gemm"]
    assert graph.notes == ("1 If with a known condition replaced by the branch that runs",)


def test_a_folded_if_is_explained_like_the_branch_itself_and_says_so() -> None:
    branched, plain = (Explainer(model(b + END), size=(8, 8), threads=1) for b in
                       (BRANCHES.format("yes"), "c = Mul(x, k) a = Relu(c) "))  # fmt: skip
    for got, expected in zip(branched.explain_tensor(X, 1), plain.explain_tensor(X, 1), strict=True):
        assert expected.raw.any()
        assert np.array_equal(got.raw, expected.raw)
    assert "1 If with a known condition replaced by the branch that runs" in branched.notes


SHAPES = {
    "last size": "i = Constant<value_int=3>() s = Shape(x) n = Gather(s, i) ",
    "counted from the end": "i = Constant<value_int=-1>() s = Shape(x) n = Gather(s, i) ",
    "sliced": "i = Constant<value_ints=[2]>() j = Constant<value_ints=[3]>() "
    "s = Shape(x) m = Slice(s, i, j) n = Squeeze(m) ",
    "of a later value": "i = Constant<value_int=0>() q = Relu(x) s = Shape<start=2, end=3>(q) n = Gather(s, i) ",
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_condition_on_a_bound_size_is_known_while_the_batch_is_open(name: str) -> None:
    body = f"{SHAPES[name]} one = Constant<value_int=8>() same = Equal(n, one) " + BRANCHES.format("same") + END
    assert "Relu" in kinds(folded(model(body), (8, 8)))[-5:]
    assert "Sigmoid" in kinds(folded(model(body), (9, 9)))


def test_a_condition_on_the_open_batch_is_not_known() -> None:
    condition = (
        "i = Constant<value_int=0>() s = Shape(x) n = Gather(s, i) k1 = Constant<value_int=1>() c1 = Equal(n, k1) "
    )
    body = "z = Relu(x) " + condition + BRANCHES.format("c1").replace("(x", "(z") + END
    graph = load(read(model(body)), {"x": ["N", 3, 8, 8]})
    assert "If" in kinds(graph) and graph.notes == ()
    with pytest.raises(UnsupportedOperatorError, match="export it with a constant condition"):
        Explainer(model(body), layer="z", size=(8, 8))


def test_a_condition_on_the_picture_is_not_known() -> None:
    body = "m = ReduceMax<keepdims=0>(x) zero = Constant<value_float=0.0>() pos = Greater(m, zero) "
    graph = load(read(model(body + BRANCHES.format("pos") + END)), {"x": ["N", 3, 8, 8]})
    assert "If" in kinds(graph) and graph.notes == ()


def test_branches_inside_branches_are_opened_too_and_keep_what_they_capture() -> None:
    """The inner branch captures a value of the outer one that another scope has as well, so it is renamed."""
    body = """c = Relu(x) a = If (yes) <
        then_branch = t () => (float[N,3,H,W] b) {
            d = Mul(x, k)
            b = If (no) <then_branch = tt () => (float[N,3,H,W] u) { u = Neg(d) },
                         else_branch = te () => (float[N,3,H,W] u) { w = Add(d, c) u = Abs(w) }> },
        else_branch = e () => (float[N,3,H,W] b) { d = Neg(x) b = Sigmoid(d) }> """
    graph = folded(model(body + END))
    assert kinds(graph) == ["Relu", "Mul", "Add", "Abs", "GlobalAveragePool", "Flatten", "Gemm"]
    assert graph.notes == ("2 If with a known condition replaced by the branch that runs",)


def test_an_open_if_inside_a_known_one_keeps_what_it_captures() -> None:
    body = """m = ReduceMax<keepdims=0>(x) zero = Constant<value_float=0.0>() pos = Greater(m, zero)
        a = If (yes) <
        then_branch = t () => (float[N,3,H,W] b) {
            d = Mul(x, k)
            b = If (pos) <then_branch = tt () => (float[N,3,H,W] u) { u = Neg(d) },
                          else_branch = te () => (float[N,3,H,W] u) { u = Abs(d) }> },
        else_branch = e () => (float[N,3,H,W] b) { d = Neg(x) b = Sigmoid(d) }> """
    graph = folded(model(body + END))
    assert kinds(graph).count("If") == 1
    assert "a/d" in graph.nodes[-4].reads


def test_names_that_two_ifs_share_become_unique() -> None:
    second = BRANCHES.format("no").replace("a = If", "h = If").replace("(x", "(a")
    graph = folded(model(BRANCHES.format("yes") + second + END.replace("(a)", "(h)")))
    made = [o for n in graph.nodes for o in n.outputs]
    assert kinds(graph)[:4] == ["Mul", "Relu", "Neg", "Sigmoid"]
    assert len(set(made)) == len(made)


def test_a_name_that_only_one_branch_has_is_kept() -> None:
    body = BRANCHES.format("yes").replace("c = Mul(x, k) b = Relu(c)", "own = Mul(x, k) b = Relu(own)")
    assert "own" in folded(model(body + END))


def test_an_output_that_is_a_constant_or_given_twice_is_copied() -> None:
    body = """r = Relu(x) a1, a2, a3 = If (yes) <
        then_branch = t () => (float[N,3,H,W] d, float[N,3,H,W] d, float[3,1,1] q)
            <float[3,1,1] q = {3, 1, 2}> { d = Mul(r, k) },
        else_branch = e () => (float[N,3,H,W] b, float[N,3,H,W] c, float[3,1,1] o) <float[3,1,1] o = {1, 1, 1}>
            { b = Neg(x) c = Abs(x) }>
        s = Sum(a1, a2, x) a = Mul(s, a3) """
    proto = model(body + END)
    graph = load(read(proto), {"x": ["N", 3, 8, 8]})
    assert np.array_equal(graph.constant("a3").ravel(), [3, 1, 2])
    got = run_in_ort(graph.complete(graph.model))
    k, q = np.array([2, 0.5, -1]).reshape(3, 1, 1), np.array([3, 1, 2]).reshape(3, 1, 1)
    pooled = ((X + 2 * np.maximum(X, 0) * k) * q).mean((2, 3))
    v = np.array([1, 2, 3, 4, -5, 6, 7, 8, 9, 10, 11, -12]).reshape(4, 3)
    np.testing.assert_allclose(got, pooled @ v.T, rtol=1e-4, atol=1e-5)


def test_large_weights_of_a_branch_become_weights_of_the_model() -> None:
    body = """a = If (yes) <then_branch = t () => (float[N,3,H,W] b) { b = Conv<pads=[16,16,16,16]>(x, w) },
                            else_branch = e () => (float[N,3,H,W] b) { b = Relu(x) }> """
    proto = model(body + END)
    w = np.random.default_rng(6).normal(size=(3, 3, 33, 33)).astype(np.float32)
    branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(w, "w"))
    graph = folded(proto)
    assert np.array_equal(graph.constant("w"), w)
    assert len(graph.model.graph.initializer[-1].raw_data) == 0  # a stub


def test_an_if_below_opset_18_is_folded_before_lifting() -> None:
    def run(proto: ModelProto) -> list[np.ndarray]:
        return [run_in_ort(proto)]

    graph = load(read(model(BRANCHES.format("yes") + END, opset=12)), {"x": ["N", 3, 8, 8]}, run)
    assert graph.notes == ("1 If with a known condition replaced by the branch that runs", "opset 12 lifted to 18")
    assert kinds(graph)[:2] == ["Mul", "Relu"]


def test_an_if_in_a_model_local_function_is_folded() -> None:
    proto = model("a = local.f(x) " + END)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    function = parser.parse_function("""<domain: "local", opset_import: ["" : 18]> f (u) => (o) {
        yes = Constant<value = bool {1}>()
        o = If (yes) <then_branch = t () => (b) { b = Relu(u) }, else_branch = e () => (b) { b = Neg(u) }> }""")
    proto.functions.append(function)
    assert "Relu" in kinds(folded(proto)) and "If" not in kinds(folded(proto))


def test_a_condition_of_shape_1_counts() -> None:
    proto = model(BRANCHES.format("one") + END)
    proto.graph.initializer.append(helper.make_tensor("one", TensorProto.BOOL, [1], [True]))
    assert kinds(folded(proto))[:2] == ["Mul", "Relu"]
