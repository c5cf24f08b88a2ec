"""The builder: names, constants, repetition, pruning."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph


def base() -> Graph:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[N,2] x) => (float[N,2] y) { a = Relu(x) y = Neg(a) }'
    return Graph(parser.parse_model(text))


def run(op: Builder, value: str, x: object) -> np.ndarray:
    model = op.model([tensor_info(value, TensorProto.FLOAT, [None] * np.ndim(x))])
    onnx.checker.check_model(model)
    (got,) = ReferenceEvaluator(model).run([value], {"x": np.asarray(x, np.float32)})
    return got


def test_emitted_operators_compute_on_names_numbers_lists_and_arrays() -> None:
    op = Builder(base())
    value = op.Add(op.Mul("a", 3.0), op.ReduceSum("x", [1], keepdims=1))
    assert run(op, op.Sub(value, np.float32([[1, 2]])), [[1, -2]]).tolist() == [[3 - 1 - 1, 0 - 1 - 2]]


@pytest.mark.parametrize("taken", ["onnxcam/Add_1", "onnxcam/constant_0", "onnxcam/x.vjp/Mul_1"])
def test_names_avoid_a_prefix_that_the_model_has(taken: str) -> None:
    graph = base()
    graph.model.graph.node[0].output[0] = taken
    graph.model.graph.node[1].input[0] = taken
    op = Builder(Graph(graph.model))
    with op.scope("x.vjp"):
        value = op.Mul(op.Add("x", 1.0), 2.0)
    assert value.startswith("onnxcam1/x.vjp/")
    assert run(op, value, [[1, 2]]).tolist() == [[4, 6]]


def test_node_names_of_the_model_count_as_taken() -> None:
    graph = base()
    graph.model.graph.node[0].name = "onnxcam/Relu_1"
    assert Builder(Graph(graph.model)).prefix == "onnxcam1"


def test_a_builder_on_its_own_output_takes_the_next_prefix() -> None:
    op = Builder(base())
    second = Builder(op.extended([op.Exp("a")]))
    value = second.Log(op.Exp("a"))
    assert value.startswith("onnxcam1/")
    assert run(second, value, [[1, 2]]) == pytest.approx(np.array([[1, 2]]))


def test_equal_constants_share_one_initializer_and_unlike_types_do_not() -> None:
    op = Builder(base())
    assert op.value(2.0) == op.value(np.float32(2)) == op.value(np.float32([2])[0])
    assert op.value([1, 2]) == op.value(np.array([1, 2], np.int64))
    distinct = [2.0, 2, [2], [2.0], True, np.float64(2), np.int32(2), np.float16(2), np.zeros((0, 2)), np.zeros((2, 0))]
    assert len({op.value(v) for v in distinct}) == len(distinct)


def test_signed_zeros_and_nan_are_constants_of_their_own() -> None:
    op = Builder(base())
    assert op.value(0.0) != op.value(-0.0)
    assert op.value(float("nan")) == op.value(float("nan"))


def test_an_empty_list_is_a_constant_of_int64() -> None:
    op = Builder(base())
    assert numpy_helper.to_array(op.initializers[op.value([])]).dtype == np.int64


@pytest.mark.parametrize("kinds", [("float16", "bfloat16"), ("float8_e4m3fn", "float8_e5m2"), ("int4", "uint4")])
def test_constants_of_unlike_types_with_the_same_bytes_are_distinct(kinds: tuple[str, str]) -> None:
    op = Builder(base())
    first, second = (op.value(np.zeros(2, getattr(ml_dtypes, k, k))) for k in kinds)
    assert first != second
    assert op.initializers[first].data_type != op.initializers[second].data_type


def test_the_same_node_is_emitted_once_whatever_the_scope() -> None:
    op = Builder(base())
    first = op.Add("x", 1.0)
    with op.scope("elsewhere"):
        again, other = op.Add("x", 1.0), op.Add("x", 2.0)
    assert first == again != other
    assert len(op.nodes) == 2


def test_nodes_with_other_attributes_or_number_of_outputs_are_emitted_again() -> None:
    op = Builder(base())
    assert op.ReduceSum("x", [1], keepdims=0) != op.ReduceSum("x", [1], keepdims=1)
    assert len(op.Split("x", outputs=2, axis=1, num_outputs=2)) == 2


def test_what_is_not_asked_for_is_left_out_and_the_model_stays_as_it_is() -> None:
    graph = base()
    before = graph.model.SerializeToString(deterministic=True)
    op = Builder(graph)
    wanted = op.Add("a", 1.0)
    op.Mul(op.Exp("x"), 7.0)
    model = op.model([tensor_info(wanted, TensorProto.FLOAT, None)])
    assert [n.op_type for n in model.graph.node] == ["Relu", "Neg", "Add"]
    assert len(model.graph.initializer) == 1
    assert [o.name for o in model.graph.output] == ["y", wanted]
    assert graph.model.SerializeToString(deterministic=True) == before


def test_an_output_that_the_model_declares_already_is_not_declared_twice() -> None:
    model = Builder(base()).model([tensor_info("y", TensorProto.FLOAT, None)])
    assert [o.name for o in model.graph.output] == ["y"]


def test_as_float_casts_other_floats_and_lets_integers_pass() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y)
              { h = Cast<to=10>(x) i = Cast<to=7>(x) y = Identity(x) }"""
    op = Builder(Graph(parser.parse_model(text)))
    assert op.as_float("x") == "x" and op.as_float("i") == "i"
    assert run(op, op.as_float("h"), [1, 2]).dtype == np.float32
    assert Builder(op.graph, TensorProto.DOUBLE).as_float("x") != "x"


def test_zeros_like_takes_the_shape_at_run_time() -> None:
    op = Builder(base())
    assert np.array_equal(run(op, op.zeros_like("x"), np.ones((3, 2))), np.zeros((3, 2)))


def test_omitted_inputs_are_empty_names_and_trailing_ones_disappear() -> None:
    op = Builder(base())
    op.Clip("x", None, 1.0)
    op.Clip("x", 0.0, None)
    assert [len(n.input) for n in op.nodes] == [3, 2] and op.nodes[0].input[1] == ""


def test_lower_case_attributes_do_not_become_operators() -> None:
    with pytest.raises(AttributeError):
        _ = Builder(base()).relu
