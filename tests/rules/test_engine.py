"""The engine on whole graphs: paths, fan-out, pruning, names, errors, second order, float16, function bodies."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import test_elementwise
import test_reduce
from onnx import ModelProto, TensorProto, parser

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.registry import RULES
from onnxcam.errors import UnsupportedOperatorError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from support.vjp import NEWEST, Case, check_case, check_runtime, check_vjp, gradient_at, gradients, run


def model(body: str, inputs: str = "double[2,3] x", outputs: str = "double[] y", opset: int = 18) -> ModelProto:
    imports = f'"" : {opset}, "acme" : 1'
    return parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => ({outputs}) {{ {body} }}")


def feed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


MICROGRAD = """
    c = Add(a, b)  two = Constant<value_float=2.0>()  k = CastLike(two, a)
    ab = Mul(a, b)  b3 = Mul(b, b)  b4 = Mul(b3, b)  d = Add(ab, b4)
    c2 = Add(c, c)  c3 = Add(c2, k)  c4 = Sub(c3, a)
    d2 = Mul(d, k)  ba = Add(b, a)  r = Relu(ba)  d3 = Sum(d, d2, r)
    bma = Sub(b, a)  q = Relu(bma)  d4 = Mul(k, q)  d5 = Sub(d3, d4)
    e = Sub(c4, d5)  f = Mul(e, e)  g = Div(f, k)  h = Div(k, f)  y = Sum(g, h, a, a, f)
"""

RESNET = """
    c1 = Conv<pads=[1,1,1,1]>(x, w1)  n1 = BatchNormalization(c1, s, o, m, v)  r1 = Relu(n1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)  t = Add(c2, x)  r2 = Relu(t)
    p = GlobalAveragePool(r2)  f = Flatten(p)  y = Gemm<transB=1>(f, w3, b3)
"""
RESNET_INPUTS = """double[N,4,5,6] x, double[4,4,3,3] w1, double[4] s, double[4] o, double[4] m, double[4] v,
    double[4,4,3,3] w2, double[4] b2, double[3,4] w3, double[3] b3"""
WEIGHTS = ("w1", "s", "o", "m", "v", "w2", "b2", "w3", "b3")
NET = Case("Conv", RESNET_INPUTS, RESNET, domain={"v": (0.5, 2.0)}, fixed=WEIGHTS)

CASES = [
    Case("Mul", "double[3] a, double[3] b", MICROGRAD, domain={"a": (-4.5, -3.5), "b": (1.5, 2.2)}),
    NET,
    Case("Conv", RESNET_INPUTS, RESNET, domain={"v": (0.5, 2.0)}),
    Case("Mul", "double[N,3] x", "s = Sigmoid(x)  y = Mul(x, s)"),
    Case("Mul", "double[N,3] x", "s = Sigmoid(x)  t = Mul(s, x)  y = Add(t, s)"),
    Case("Mul", "double[N,3] x, double[N,3] k", "s = Sigmoid(x)  t = Mul(k, s)  y = Mul(t, x)"),
    Case("Mul", "double[N,4,5,6] x", "p = GlobalAveragePool(x)  s = Sigmoid(p)  y = Mul(x, s)"),
    Case("GlobalAveragePool", "double[N,4,5,6] x", "p = GlobalAveragePool(x)  q = Mul(p, p)  y = Mul(q, p)"),
    *(
        replace(Case("MaxPool", "double[N,16,6,8] x", body), blocks=blocks)
        for blocks in (False, True)
        for body in (
            "r = Relu(x)  y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)",
            "r = Relu(x)  k = Constant<value_float=-0.5>()  l = CastLike(k, r)  t = Add(r, l)"
            "  y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)",
            "r = Relu(x)  k = Constant<value_float=0.5>()  l = CastLike(k, r)  t = Add(r, l)"
            "  y = MaxPool<kernel_shape=[2,2]>(t)",
            "r = Relu(x)  p = MaxPool<kernel_shape=[3,3]>(r)  q = MaxPool<kernel_shape=[2,2]>(r)"
            "  s = Mul(p, p)  t = MaxPool<kernel_shape=[2,2]>(s)  v = GlobalAveragePool(q)  y = Mul(t, v)",
        )
    ),
]


def test_a_mask_in_front_of_a_pooling_is_as_small_as_what_is_pooled() -> None:
    model = Case(
        "MaxPool", "double[1,2,6,8] x", "r = Relu(x)  y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)"
    ).model(18)
    rewritten, _ = gradients(model, ["x"], (1, 2, 3, 4))
    (mask,) = (n for n in rewritten.graph.node if n.op_type == "Greater")
    assert mask.input[0] == "y"


def test_a_gated_input_is_differentiated_in_four_passes() -> None:
    model = Case("Mul", "double[N,3] x", "s = Sigmoid(x)  y = Mul(x, s)").model(18)
    rewritten, _ = gradients(model, ["x"], (2, 3))
    assert [n.op_type for n in rewritten.graph.node[2:]] == ["Sub", "Mul", "Add", "Mul"]


def test_what_was_spread_is_added_before_it_is_spread() -> None:
    model = Case("Add", "double[2,4,5,6] x", "p = GlobalAveragePool(x)  y = Mul(x, p)").model(18)
    rewritten, _ = gradients(model, ["x"], (2, 4, 5, 6))
    assert "Expand" not in [n.op_type for n in rewritten.graph.node]


@pytest.mark.parametrize("opset", range(18, NEWEST + 1))
def test_a_residual_net_is_differentiated_at_every_opset(opset: int) -> None:
    check_case(NET, opset)


def test_a_residual_block_costs_one_node_per_forward_node_and_two_per_relu() -> None:
    net = NET.model(18)
    rewritten, _ = gradients(net, ["x"], (2, 3))
    nodes, folded = rewritten.graph.node[len(net.graph.node) :], {i.name for i in rewritten.graph.initializer}
    for node in nodes:  # what depends on weights alone is folded when the model is loaded
        folded.update(node.output if folded.issuperset(node.input) else ())
    emitted = [n.op_type for n in nodes if not folded.issuperset(n.output)]
    head, mask = ["Gemm", "Reshape", "Div", "Shape", "Expand"], ["Greater", "Cast", "Mul"]
    assert emitted == [*head, *mask, "Conv", *mask, "Mul", "Conv", "Add"]


@pytest.mark.parametrize(
    ("a", "emitted"),
    [
        ("[N,3]", []),
        ("[1,3]", ["ReduceSum"]),
        ("[N,1]", ["ReduceSum"]),
        ("[3]", ["ReduceSum"]),
        ("", ["ReduceSum"]),
        ("[1]", ["ReduceSum", "Squeeze"]),
    ],
)
def test_a_broadcast_known_at_rewrite_time_costs_one_sum(a: str, emitted: list[str]) -> None:
    net = model("y = Add(a, b)", f"double{a} a, double[N,3] b", "double[N,3] y")
    rewritten, _ = gradients(net, ["a"], (2, 3))
    assert [n.op_type for n in rewritten.graph.node[1:]] == emitted


def test_every_emitted_node_and_constant_is_needed_by_an_output() -> None:
    rewritten, names = gradients(NET.model(18), ["x"], (2, 3))
    needed = {*names.values(), "y"}
    for node in reversed(rewritten.graph.node):
        assert needed & set(node.output), node.name
        needed.update(node.input)
    assert {t.name for t in rewritten.graph.initializer} <= needed


def test_names_do_not_collide_with_a_model_that_was_rewritten_before() -> None:
    first = model("h = Exp(x)  y = Sin(h)", outputs="double[2,3] y")
    once, names = gradients(first, ["x"], (2, 3))
    for i in once.graph.input:
        i.name = "v" if i.name == "u" else i.name
    for node in once.graph.node:
        node.input[:] = ["v" if i == "u" else i for i in node.input]
    twice, again = gradients(once, ["x"], (2, 3))
    outputs = [o for n in twice.graph.node for o in n.output]
    assert len(outputs) == len(set(outputs))
    assert names["x"] != again["x"]
    x, u = feed(2, 3), feed(2, 3, seed=1)
    a, b = run(twice, {"x": x, "u": u, "v": u}, [names["x"], again["x"]])
    np.testing.assert_array_equal(a, b)


def test_all_operators_without_a_rule_are_named_at_once() -> None:
    text = """a = acme.Fuse(x)  b = acme.Fuse(a)  <name = "nope"> c = Unique(b)
              side = acme.Aside(x)  i = Shape(side)  z = Reshape(c, i)  y = Relu(z)"""
    graph = Graph(model(text.replace('<name = "nope"> ', "")))
    with pytest.raises(UnsupportedOperatorError) as caught:
        differentiate(graph, Builder(graph), "y", ["x"])
    assert caught.value.message.splitlines() == [
        "2 operators have no derivative rule between `x` and `y`",
        "  acme::Fuse  2x  first node `a`",
        "  Unique      1x  first node `c`: where its values end up depends on the input",
    ]
    assert "onnxcam layers" in caught.value.hint


def test_an_unsupported_operator_beside_the_path_does_not_matter() -> None:
    graph = Graph(model("a = acme.Fuse(x)  i = Shape(a)  r = Relu(x)  y = Reshape(r, i)"))
    assert differentiate(graph, Builder(graph), "y", ["r"])["r"] is not None


def test_what_a_subgraph_captures_is_on_the_path() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]> g (double[3] x, bool c) => (double[3] y)
        { s = Sin(x)
          y = If(c) <then_branch = t () => (double[3] p) { p = Exp(s) },
                     else_branch = e () => (double[3] q) { q = Identity(s) }> }"""
    graph = Graph(parser.parse_model(text))
    with pytest.raises(UnsupportedOperatorError, match=r"If  1x"):
        differentiate(graph, Builder(graph), "y", ["x"])


@pytest.mark.parametrize(
    "body",
    [
        "y = ArgMax(x)",
        "y = Shape(x)",
        "i = Cast<to=7>(x)  y = Cast<to=11>(i)",
        "z = Floor(x)  y = Exp(z)",
        "s = Shape(x)  f = Cast<to=11>(s)  y = Exp(f)",
        "i = ArgMax(x)  y = Gather(z, i)",
    ],
)
def test_the_gradient_is_none_where_influence_stops(body: str) -> None:
    graph = Graph(model(body, "double[2,3] x, double[2,3] z"))
    assert differentiate(graph, Builder(graph), "y", ["x"]) == {"x": None}


def test_only_the_differentiable_of_two_paths_counts() -> None:
    body = (
        "i = ArgMax<axis=0, keepdims=0>(x)  p = Gather(x, i)  f = Floor(x)  s = ReduceSum<keepdims=0>(f)  y = Add(p, s)"
    )
    assert gradient_at("double[3] x", body, x=[1.5, 4.5, 2.5]) == [[0, 1, 0]]


def test_a_value_upstream_of_another_gets_its_whole_gradient() -> None:
    case = "s = Sin(x)  e = Exp(s)  y = Mul(e, s)"
    net, x = model(case, outputs="double[2,3] y"), feed(2, 3)
    graph = Graph(net)
    op = Builder(graph, TensorProto.DOUBLE)
    grads = differentiate(graph, op, "y", ["e", "x", "s", "y"])
    rewritten = op.model([tensor_info(str(g), op.dtype, [2, 3]) for g in grads.values()])
    de, dx, ds, dy = run(rewritten, {"x": x}, [str(g) for g in grads.values()])
    s = np.sin(x)
    np.testing.assert_allclose(de, s, rtol=1e-15)
    np.testing.assert_allclose(ds, np.exp(s) * (1 + s), rtol=1e-14)
    np.testing.assert_allclose(dx, np.exp(s) * (1 + s) * np.cos(x), rtol=1e-14)
    np.testing.assert_array_equal(dy, np.ones((2, 3)))


def test_two_outputs_are_differentiated_by_one_builder_without_mixing() -> None:
    net = model("h = Exp(x)  y = Sin(h)  z = Mul(h, x)", outputs="double[2,3] y, double[2,3] z")
    graph, x = Graph(net), feed(2, 3)
    op = Builder(graph, TensorProto.DOUBLE)
    names = [str(differentiate(graph, op, value, ["x"])["x"]) for value in ("y", "z")]
    rewritten = op.model([tensor_info(n, op.dtype, [2, 3]) for n in names])
    dy, dz = run(rewritten, {"x": x}, names)
    np.testing.assert_allclose(dy, np.cos(np.exp(x)) * np.exp(x), rtol=1e-14)
    np.testing.assert_allclose(dz, np.exp(x) * (1 + x), rtol=1e-14)


def test_samples_of_a_batch_are_independent() -> None:
    net = NET.model(18)
    rewritten, names = gradients(net, ["x"], ("N", 3))
    values = NET.values(net)
    u = feed(2, 3)
    (both,) = run(rewritten, {**values, "u": u}, [names["x"]])
    for i in range(2):
        (alone,) = run(rewritten, {**values, "x": values["x"][i : i + 1], "u": u[i : i + 1]}, [names["x"]])
        np.testing.assert_allclose(both[i : i + 1], alone, rtol=1e-12)


SMOOTH = """
    c = Conv<pads=[1,1,1,1]>(x, w)  n = LayerNormalization<axis=1>(c, s)  t = Tanh(n)  g = Sigmoid(c)  m = Mul(t, g)
    p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(m)  f = Flatten(p)  l = Gemm(f, v)  y = Softmax(l)
"""


def test_the_gradient_can_be_differentiated_again() -> None:
    case = Case("Conv", "double[N,2,4,4] x, double[2,2,3,3] w, double[2,4,4] s, double[8,3] v", SMOOTH)
    net = case.model(18)
    graph = Graph(net)
    op = Builder(graph, TensorProto.DOUBLE)
    weights = op.floats(np.array([[1.0, -2.0, 0.5]]))
    score = op.ReduceSum(op.Mul("y", weights), [1], keepdims=0)
    graph = op.extended([score])
    op = Builder(graph, TensorProto.DOUBLE)
    first = str(differentiate(graph, op, score, ["x"])["x"])
    check_vjp(
        op.model([tensor_info(first, op.dtype, graph.shape("x"))]), case.values(net), ["x", "w", "s", "v"], y=first
    )


HALF = [
    Case("Conv", RESNET_INPUTS, RESNET, domain={"v": (0.5, 2.0), "w1": (-0.3, 0.3), "w2": (-0.3, 0.3)}, fixed=WEIGHTS),
    Case("Gelu", "double[N,8] x, double[8] s", "n = LayerNormalization(x, s)  y = Gelu(n)", since=20),
    Case("Softmax", "double[N,3,4] x", "t = Transpose<perm=[0,2,1]>(x)  a = MatMul(x, t)  y = Softmax(a)"),
    Case("MaxPool", "double[1,2,4,4] x", "p = MaxPool<kernel_shape=[2,2]>(x)  y = HardSwish(p)"),
    Case(
        "LogSoftmax",
        "double[3,5] x, int64[3] t",
        "l = LogSoftmax(x)  y = NegativeLogLikelihoodLoss(l, t)",
        feeds={"t": np.array([1, 0, 4])},
    ),
]


@pytest.mark.parametrize("case", HALF, ids=lambda c: c.kind)
def test_a_float16_model_gets_float32_gradients(case: Case) -> None:
    pytest.importorskip("onnxruntime")
    check_runtime(case, case.opsets[0], "float16", tolerance=4e-3)


NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
TARGET = {"t": np.array([1, 0, 4])}
CASES += [
    Case(
        NLL,
        "double[3,5] x, int64[3] t, double[5] w",
        f"y = {NLL}(x, t, w)",
        feeds=TARGET,
        domain={"w": (0.5, 1.5)},
        expands=True,
    ),
    Case(NLL, "double[3,5] x, int64[3] t", f'y = {NLL}<reduction="sum">(x, t)', feeds=TARGET, expands=True),
    Case(SCE, "double[3,5] x, int64[3] t", f"y = {SCE}(x, t)", feeds=TARGET, expands=True),
    Case(SCE, "double[3,5] x, int64[3] t", f"l, y = {SCE}(x, t)", feeds=TARGET, expands=True),
]


def test_a_function_body_with_float32_constants_is_expanded() -> None:
    """MeanVarianceNormalization, against its formula written out."""
    pytest.importorskip("onnxruntime")
    x = np.linspace(-1.0, 2.0, 24).reshape(2, 3, 2, 2) ** 3
    (found,) = gradient_at("double[2,3,2,2] x", "m = MeanVarianceNormalization(x)  y = Exp(m)", runtime=True, x=x)
    formula = """axes = Constant<value_ints=[0,2,3]>()  mean = ReduceMean(x, axes)  c = Sub(x, mean)  q = Mul(c, c)
        var = ReduceMean(q, axes)  d = Sqrt(var)  m = Div(c, d)  y = Exp(m)"""
    (expected,) = gradient_at("double[2,3,2,2] x", formula, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def has_body(kind: str, opset: int) -> bool:
    schema = onnx.defs.get_schema(kind, opset)
    return schema.has_function or schema.has_context_dependent_function


TWICE = [
    pytest.param(case, id=f"{case.inputs} | {case.body}")
    for module in (test_elementwise, test_reduce)
    for case in module.CASES
    if has_body(case.kind, NEWEST)
]


@pytest.mark.parametrize("case", TWICE)
def test_a_function_body_has_the_derivative_of_its_operator(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of the rules once more, with the rule taken away."""
    monkeypatch.delitem(RULES, case.kind)
    check_case(case, NEWEST)
