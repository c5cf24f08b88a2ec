"""The graph index: who makes, who reads, what is constant, what type."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcam.graph.index import SMALL, Graph, Node


def graph(body: str, signature: str = "float[N,3,8,8] x) => (float[N,2] y", constants: str = "", **options) -> Graph:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g ({signature}) {constants} {{ {body} }}'
    return Graph(parser.parse_model(text), **options)


BRANCHES = graph(
    """
    p = Relu(x)
    q = Sigmoid(x)
    r = Add(p, q)
    s = GlobalAveragePool(r)
    f = Flatten(s)
    y = MatMul(f, w)
    """,
    constants="<float[3,2] w = {1, 2, 3, 4, 5, 6}>",
)


def test_producer_is_the_node_that_makes_a_value_and_none_for_inputs_and_weights() -> None:
    assert repr(BRANCHES.producer("r")) == "Add(p, q) -> r"
    assert BRANCHES.producer("x") is None and BRANCHES.producer("w") is None and BRANCHES.producer("nowhere") is None


def test_consumers_are_the_readers_in_topological_order() -> None:
    assert [n.outputs for n in BRANCHES.consumers("x")] == [("p",), ("q",)]
    assert [n.op_type for n in BRANCHES.consumers("w")] == ["MatMul"]
    assert BRANCHES.consumers("y") == ()


def test_a_node_that_reads_a_value_twice_is_one_consumer() -> None:
    assert len(graph("y2 = Mul(x, x) y = Identity(y2)").consumers("x")) == 1


def test_membership_knows_inputs_weights_and_values() -> None:
    assert all(v in BRANCHES for v in ("x", "w", "r")) and "nowhere" not in BRANCHES


def captured() -> Graph:
    """`If` whose branches read `x` and `bias` of the outer scope; `local` and `inner` are the branch's own."""
    local = helper.make_node("Add", ["x", "bias"], ["local"])
    nested = helper.make_graph(
        [helper.make_node("Mul", ["local", "deep"], ["out3"])],
        "nested",
        [],
        [helper.make_empty_tensor_value_info("out3")],
    )
    inner = helper.make_node("If", ["flag"], ["out1"], then_branch=nested, else_branch=nested)
    then = helper.make_graph([local, inner], "then", [], [helper.make_empty_tensor_value_info("out1")])
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["out2"])], "else", [], [helper.make_empty_tensor_value_info("out2")]
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["deep"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other, name="if"),
    ]
    tensors = [numpy_helper.from_array(np.float32(1), "bias"), numpy_helper.from_array(np.array(True), "flag")]
    main = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        tensors,
    )
    return Graph(helper.make_model(main, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


@pytest.mark.parametrize("value", ["x", "bias", "deep", "flag"])
def test_values_captured_by_subgraphs_are_read_by_the_node_that_holds_them(value: str) -> None:
    assert "if" in [n.name for n in captured().consumers(value)]


@pytest.mark.parametrize("value", ["local", "out1", "out3"])
def test_values_of_a_subgraph_are_not_read_from_outside(value: str) -> None:
    assert captured().consumers(value) == ()


def test_attributes_are_python_values_with_the_defaults_of_the_schema() -> None:
    g = graph('c = Conv<pads=[1,1,1,1], auto_pad="NOTSET">(x, w) y = Flatten(c)', constants="<float[2,3,3,3] w = {0}>")
    attrs = g.nodes[0].attrs
    assert (attrs["pads"], attrs["auto_pad"], attrs["group"]) == ([1, 1, 1, 1], "NOTSET", 1)
    assert g.nodes[1].attrs == {"axis": 1}


def test_kind_names_other_domains_and_both_spellings_of_the_default_one() -> None:
    nodes = [Node(helper.make_node("Relu", ["x"], ["y"], domain=d), 18) for d in ("", "ai.onnx", "com.microsoft")]
    assert [n.kind for n in nodes] == ["Relu", "Relu", "com.microsoft::Relu"]


def test_an_unnamed_node_is_called_after_its_first_output() -> None:
    assert Node(helper.make_node("Relu", ["x"], ["y"]), 18).name == "y"
    assert Node(helper.make_node("Relu", ["x"], ["y"], name="act"), 18).name == "act"


def test_arithmetic_on_constants_folds_to_the_value_numpy_computes() -> None:
    g = graph(
        "two = Constant<value_int=2>() t = Mul(k, two) u = Sub(t, k) s = Shape(x) y = Relu(x)",
        constants="<int64[3] k = {3, -4, 5}>",
    )
    assert g.constant("u").tolist() == [3, -4, 5] and g.constant("t").tolist() == [6, -8, 10]
    assert g.constant("k").tolist() == [3, -4, 5]
    assert g.constant("y") is None and g.constant("x") is None and g.constant("s") is None


def test_random_draws_are_not_constant() -> None:
    assert graph("r = RandomNormal<shape=[2]>() y = Relu(x)").constant("r") is None


def test_shapes_are_inferred_with_the_bound_size_and_a_symbolic_batch() -> None:
    g = graph(
        "c = Conv<strides=[2,2]>(x, w) a = Relu(c) p = GlobalAveragePool(a) y = Flatten(p)",
        signature="float[N,3,H,W] x) => (float[N,5] y",
        constants="<float[5,3,2,2] w = {0}>",
        shapes={"x": ["N", 3, 10, 12]},
    )
    assert (g.shape("x"), g.shape("c"), g.shape("y")) == (("N", 3, 10, 12), ("N", 5, 5, 6), ("N", 5))
    assert g.dtype("c") == TensorProto.FLOAT and g.dtype("nowhere") == TensorProto.UNDEFINED


def test_shapes_survive_reshapes_that_exporters_compute_from_the_batch() -> None:
    g = graph(
        """
        s = Shape(x)
        zero = Constant<value_ints=[0]>()
        n = Gather(s, zero)
        rest = Constant<value_ints=[192]>()
        to = Concat<axis=0>(n, rest)
        y = Reshape(x, to)
        """,
        signature="float[N,3,H,W] x) => (float[M,K] y",
        shapes={"x": ["N", 3, 8, 8]},
    )
    assert g.shape("y") == ("N", 192)


def test_stale_declared_output_shapes_are_not_believed() -> None:
    g = graph("y = Flatten(x)", signature="float[N,3,2,2] x) => (float[N,999] y", shapes={"x": ["N", 3, 2, 2]})
    assert g.shape("y") == ("N", 12)


def test_large_weights_leave_the_working_model_and_come_back_whole() -> None:
    w = np.arange(2 * (SMALL // 2 + 1), dtype=np.float32).reshape(2, -1)
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N,{w.shape[1]}] x) => (float[N,2] y) {{ y = Gemm<transB=1>(x, w) }}""")
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    g = Graph(model)
    assert g.model.ByteSize() < 1000 < w.nbytes
    assert g.shape("w") == w.shape
    assert np.array_equal(g.constant("w"), w)
    whole = g.complete(g.model)
    assert np.array_equal(numpy_helper.to_array(whole.graph.initializer[0]), w)


def test_shapes_are_known_behind_a_pool_of_integers_where_the_graph_is_walked() -> None:
    """ONNX's AveragePool stands in for the quantised one, and takes floats only."""
    text = """<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (uint8[N,3,8,8] x) => (uint8[N,3] y)
        <float s = {1}, uint8 z = {0}, int64[1] start = {0}, int64[1] end = {2}>
        { p = com.microsoft.QLinearAveragePool<kernel_shape=[8,8]>(x, s, z, s, z)
          t = Shape(p) b = Slice(t, start, end) n = Abs(b) y = Reshape(p, n) }"""
    found = Graph(parser.parse_model(text), shapes={"x": ["N", 3, 8, 8]})
    assert found.shape("p") == ("N", 3, 1, 1) and found.dtype("p") == TensorProto.UINT8
    assert found.shape("y") == ("N", 3) and found.dtype("y") == TensorProto.UINT8
