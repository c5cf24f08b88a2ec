"""A head that picks one token: the narrow form has the same value and the same gradient, and is narrow."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.one_token import for_one_token, of_one_token
from onnxcam.explained import explained_model, open_graph
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from onnxcam.graph.read import read
from onnxcam.runtime import Session

T, C = 5, 4
SIZES = {"WQ": (C, C), "WK": (C, C), "WV": (C, C), "WO": (C, C), "W1": (C, 7), "b1": (7,), "W2": (7, C), "s": (C,),
         "t": (C,), "P": (1, T, C), "W": (C, 3)}  # fmt: skip
TEXT = """<ir_version: 8, opset_import: ["" : 20]>
    block (float[N, 5, 4] x) => (float[N, 3] y) {
        split = Constant<value_ints = [0, 5, 2, 2]>()  join = Constant<value_ints = [0, 5, 4]>()
        e = Add(x, P)  a = LayerNormalization(e, s, t)
        q = MatMul(a, WQ)  k = MatMul(a, WK)  v = MatMul(a, WV)
        q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)
        qh = Transpose<perm = [0, 2, 1, 3]>(q4)  kh = Transpose<perm = [0, 2, 3, 1]>(k4)
        vh = Transpose<perm = [0, 2, 1, 3]>(v4)
        scores = MatMul(qh, kh)  p = Softmax<axis = -1>(scores)  o = MatMul(p, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o)  oj = Reshape(ot, join)  op = MatMul(oj, WO)
        h = Add(e, op)  m = LayerNormalization(h, s, t)
        u = MatMul(m, W1)  ub = Add(u, b1)  g = Gelu(ub)  d = MatMul(g, W2)
        z = Add(h, d)  n = LayerNormalization(z, s, t)
        HEAD
    }"""
PICKED = "c = Gather<axis = 1>(n, index)  y = MatMul(c, W)"


def block(head: str = PICKED, token: int = 0) -> onnx.ModelProto:
    model = parser.parse_model(TEXT.replace("HEAD", head))
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name, size in SIZES.items()}
    arrays["index"] = np.array(token, np.int64)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def outputs(model: onnx.ModelProto, wrt: str, form: str) -> tuple[np.ndarray, np.ndarray, onnx.ModelProto]:
    """y, its gradient at `wrt`, and the model that computes them."""
    graph = Graph(model, shapes={"x": ("N", T, C)})
    if form == "placed":
        placed = for_one_token(graph, ["y"], [wrt])
        assert placed is not graph and placed.outputs == graph.outputs
        graph = placed
    op, y = Builder(graph), "y"
    if form == "copied":
        copy = of_one_token(graph, op, "y", [wrt])
        assert copy is not None
        y = copy
        op = Builder(op.extended([y]))
    gradient = differentiate(op.graph, op, y, [wrt])[wrt]
    named = [op.Identity(y), op.Identity(gradient)]
    rewritten = op.model([tensor_info(name, TensorProto.FLOAT, None) for name in named])
    x = np.random.default_rng(4).standard_normal((2, T, C), dtype=np.float32)
    found = Session(rewritten, threads=1).run({"x": x}, named)
    return found[named[0]], found[named[1]], rewritten


@pytest.mark.parametrize("form", ["copied", "placed"])
@pytest.mark.parametrize("token", [0, 3, -1])
@pytest.mark.parametrize("wrt", ["x", "e", "a", "vh", "kh", "oj", "h"])
def test_value_and_gradient_are_those_of_the_whole_head(wrt: str, token: int, form: str) -> None:
    y, gradient, _ = outputs(block(token=token), wrt, "whole")
    narrow_y, narrow_gradient, _ = outputs(block(token=token), wrt, form)
    np.testing.assert_allclose(narrow_y, y, rtol=1e-5, atol=1e-5)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(narrow_gradient, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())


def shapes_in(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}  # fmt: skip


def test_only_keys_and_values_are_computed_at_every_token() -> None:
    """Of the model itself, with the narrow form in the place of what it copies."""
    placed = for_one_token(Graph(block(), shapes={"x": ("N", T, C)}), ["y"], ["a"])
    model = placed.complete(placed.model)
    shapes = shapes_in(model)
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in SIZES and "y" not in n.output]
    widths = {n.input[1]: shapes[n.output[0]][1] for n in products}
    assert widths == {"WQ": 1, "WK": T, "WV": T, "WO": 1, "W1": 1, "W2": 1}
    read_somewhere = {i for n in model.graph.node for i in n.input} | {"y"}
    assert {o for n in model.graph.node for o in n.output} <= read_somewhere


@pytest.mark.parametrize("also", ["g", "oj", "n"])
def test_what_is_read_or_output_beside_the_token_stays_whole(also: str) -> None:
    """As a second output, as a value that the target reads too, and as what another output is made of."""
    x = np.random.default_rng(4).standard_normal((2, T, C), dtype=np.float32)
    model = block()
    (whole,) = Session(Graph(extended := with_output(model, also)).complete(extended)).run({"x": x}, [also]).values()
    for reads, source in ((["y"], with_output(model, also)), (["y", also], model)):
        placed = for_one_token(Graph(source, shapes={"x": ("N", T, C)}), reads, ["a"])
        made = with_output(placed.complete(placed.model), also) if source is model else placed.complete(placed.model)
        np.testing.assert_array_equal(Session(made).run({"x": x}, [also])[also], whole)
    doubled = with_output(model, "twice")
    doubled.graph.node.append(onnx.helper.make_node("Add", [also, also], ["twice"]))
    placed = for_one_token(Graph(doubled, shapes={"x": ("N", T, C)}), ["y"], ["a"])
    found = Session(placed.complete(placed.model)).run({"x": x}, ["twice"])["twice"]
    np.testing.assert_array_equal(found, 2 * whole)


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(tensor_info(name, TensorProto.FLOAT, None))
    return made


@pytest.mark.parametrize(("method", "tokens"), [("gradcam", 1), ("ablationcam", 1), ("saliency", 1), ("legrad", 55)])
def test_what_an_explainer_runs_computes_its_last_block_for_one_token(method: str, tokens: int) -> None:
    """Rows of the last MLP; an exported file keeps the model's own nodes."""
    file = Path(__file__).parents[1] / "parity" / "goldens" / "vit.onnx"
    graph, image, _ = open_graph(read(file), size=(24, 36))
    rows = {}
    for lean in (True, False):
        model = explained_model(graph, image, method=method, lean=lean).model
        shapes = shapes_in(model)
        mlps = [n.input[0] for n in model.graph.node if n.op_type == "Gelu" or n.op_type == "Erf"]
        rows[lean] = [shapes[i][1] for i in mlps if i in shapes]
        if not lean:
            assert list(model.graph.node)[: len(graph.nodes)] == list(graph.model.graph.node)
    assert rows[True][1] == tokens and rows[False][:2] == [55, 55]


def test_only_keys_and_values_are_differentiated_at_every_token() -> None:
    """Products with weights: the query's, the output's and the MLP's see 1 token, the key's and the value's all."""
    _, _, model = outputs(block(), "a", "copied")
    shapes = shapes_in(model)
    weights = {o: n.input[0] for n in model.graph.node if n.op_type == "Transpose" for o in n.output}
    widths = {
        weights[node.input[1]]: shapes[node.output[0]][1]
        for node in model.graph.node
        if node.op_type == "MatMul" and weights.get(node.input[1], "") in ("WQ", "WK", "WV", "WO", "W1", "W2")
    }
    assert widths == {"W2": 1, "W1": 1, "WO": 1, "WQ": 1, "WK": T, "WV": T}


def test_what_keys_and_values_read_is_not_copied_for_the_query() -> None:
    """Of three norms the first is whole for the keys already."""
    _, _, model = outputs(block(), "x", "copied")
    assert sum(node.op_type == "LayerNormalization" for node in model.graph.node) == 3 + 2


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("c = ReduceMean<keepdims = 0>(n, one)  y = MatMul(c, W)", id="the mean of the tokens"),
        pytest.param("c = Gather<axis = 1>(n, index)  b = Gather<axis = 1>(n, one0)  cb = Add(c, b)  y = MatMul(cb, W)",
                     id="two tokens"),
    ],
)  # fmt: skip
def test_other_heads_are_left_alone(head: str) -> None:
    model = block(head)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one0"))
    graph = Graph(model, shapes={"x": ("N", T, C)})
    assert of_one_token(graph, Builder(graph), "y", ["a"]) is None
    assert for_one_token(graph, ["y"], ["a"]) is graph


def test_nothing_is_copied_where_the_layer_is_what_the_token_is_picked_from() -> None:
    graph = Graph(block(), shapes={"x": ("N", T, C)})
    assert of_one_token(graph, Builder(graph), "y", ["n"]) is None
    assert for_one_token(graph, ["y"], ["n"]) is graph
