"""Which layer is chosen, and which can be named."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcam import Explainer
from onnxcam.check import check
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer, automatic_layer, candidate_layers, named_layer
from onnxcam.graph.layout import Layout

WEIGHTS = {
    "w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (6, 4, 1, 1), "w4": (4, 4, 1, 1),
    "v": (5, 4), "v6": (5, 144), "v10": (5, 10), "v768": (5, 768),
}  # fmt: skip


def graph(body: str) -> Graph:
    text = f"""
        <ir_version: 8, opset_import: ["" : 18]> g (float[N,3,16,16] x) => (float[N,C] y)
        {{ {body} }}"""
    model = parser.parse_model(text)
    used = {i for n in model.graph.node for i in n.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), n) for n, shape in WEIGHTS.items() if n in used
    )
    return Graph(model, shapes={"x": ["N", 3, 16, 16]})


PLAIN = "c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) r2 = Relu(c2) "
GRAPHS = {
    "plain": (PLAIN + "p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm<transB=1>(f, v)", "r2", (12, 12)),
    "max pooling before flattening, as VGG": (
        PLAIN + "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r2) f = Flatten(m) y = Gemm<transB=1>(f, v6)",
        "m",
        (6, 6),
    ),
    "branches joined by Concat": (
        PLAIN + "p1 = Conv<pads=[1,1,1,1]>(r2, w2) p2 = Conv(r2, w3) j = Concat<axis=1>(p1, p2) "
        "p = GlobalAveragePool(j) f = Flatten(p) y = Gemm<transB=1>(f, v10)",
        "j",
        (12, 12),
    ),
    "a residual sum": (
        PLAIN + "c3 = Conv<pads=[1,1,1,1]>(r2, w2) s = Add(r2, c3) p = GlobalAveragePool(s) f = Flatten(p) "
        "y = Gemm<transB=1>(f, v)",
        "s",
        (12, 12),
    ),
    "squeeze and excitation, whose 1x1 gate is no map": (
        PLAIN + "q = GlobalAveragePool(r2) e = Conv(q, w4) g = Sigmoid(e) s = Mul(r2, g) "
        "p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, v)",
        "s",
        (12, 12),
    ),
    "a 1x1 convolution as classifier behind the pooling": (
        PLAIN + "p = GlobalAveragePool(r2) z = Conv(p, w3) y = Flatten(z)",
        "r2",
        (12, 12),
    ),
    "a convolutional classifier before the pooling": (
        PLAIN + "z = Conv(r2, w3) p = GlobalAveragePool(z) y = Flatten(p)",
        "z",
        (12, 12),
    ),
    "values moved but not computed": (
        PLAIN + "i = Identity(r2) d = Dropout(i) t = Transpose<perm=[0,1,3,2]>(d) p = GlobalAveragePool(t) "
        "f = Flatten(p) y = Gemm<transB=1>(f, v)",
        "r2",
        (12, 12),
    ),
    "pooling by ReduceMean": (
        PLAIN + "axes = Constant<value_ints=[2,3]>() f = ReduceMean<keepdims=0>(r2, axes) y = Gemm<transB=1>(f, v)",
        "r2",
        (12, 12),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_automatic_layer_is_the_last_spatial_map_before_it_is_pooled_or_flattened_away(name: str) -> None:
    body, expected, grid = GRAPHS[name]
    layer = automatic_layer(graph(body), "x", "y")
    assert (layer.name, layer.grid) == (expected, grid)


def test_a_side_branch_after_the_last_map_is_not_chosen() -> None:
    body = PLAIN + "p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm<transB=1>(f, v) aux = Sigmoid(r2)"
    assert automatic_layer(graph(body), "x", "y").name == "r2"


def test_candidates_are_in_order_of_depth_with_operator_channels_and_grid() -> None:
    got = candidate_layers(graph(GRAPHS["plain"][0]), "x", "y")
    assert [(c.name, c.op_type, c.channels, c.grid) for c in got] == [
        ("c1", "Conv", 4, (14, 14)),
        ("r1", "Relu", 4, (14, 14)),
        ("c2", "Conv", 4, (12, 12)),
        ("r2", "Relu", 4, (12, 12)),
    ]
    assert [c.depth for c in got] == sorted(c.depth for c in got)


def test_a_network_without_a_map_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no feature map with a spatial grid lies between `x` and `y`"):
        automatic_layer(graph("f = Flatten(x) y = Gemm<transB=1>(f, v768)"), "x", "y")


def named() -> Graph:
    g = graph(GRAPHS["plain"][0] + " aux = Sigmoid(r1)")
    for node, name in zip(g.model.graph.node, ("/conv1", "/relu1", "/conv2", "/relu2"), strict=False):
        node.name = name
    return Graph(g.model, shapes=g.shapes)


def choose(name: str) -> Layer:
    return named_layer(named(), name, "x", "y")


def test_a_layer_is_named_by_value_or_by_node() -> None:
    assert choose("r1") == choose("/relu1") == Layer("r1", "Relu", "/relu1", 4, Layout("nchw", (14, 14)), 1)


def test_a_value_wins_over_a_node_of_the_same_name() -> None:
    g = named()
    g.model.graph.node[0].name = "r2"
    assert named_layer(Graph(g.model, shapes=g.shapes), "r2", "x", "y").name == "r2"


def test_an_unknown_layer_suggests_the_nearest_values_and_nodes() -> None:
    with pytest.raises(UsageError, match="the model has no layer `/relu3`") as error:
        choose("/relu3")
    assert "`/relu2`" in error.value.hint and "did you mean" in error.value.hint
    with pytest.raises(UsageError) as error:
        choose("qqqqqqqqqq")
    assert error.value.hint == "`onnxcam layers MODEL` lists them"


@pytest.mark.parametrize(("name", "shape"), [("p", "['N', 4, 1, 1]"), ("f", "['N', 4]"), ("y", "['N', 5]")])
def test_a_value_without_a_grid_is_refused_with_its_shape(name: str, shape: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        choose(name)
    assert error.value.message == f"layer `{name}` has no spatial grid: its shape is {shape}"


def test_a_map_off_the_way_to_the_score_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="layer `aux` does not lie between the picture `x` and the score `y`"):
        choose("aux")


def test_the_model_input_is_no_layer() -> None:
    with pytest.raises(UsageError, match="no layer `x`"):
        choose("x")


def test_the_choice_is_recorded_and_a_named_layer_is_no_choice() -> None:
    model = graph(GRAPHS["plain"][0]).model
    assert "layer `r2` chosen: the last spatial map" in Explainer(model).notes
    assert not any("chosen" in n for n in Explainer(model, layer="r1").notes)


def test_check_lists_candidates_deepest_first_with_the_methods_possible_there() -> None:
    report = check(graph(GRAPHS["plain"][0]).model)
    assert [r.layer.name for r in report.layers] == ["r2", "c2", "r1", "c1"]
    assert report.automatic is report.layers[0] and report.problem is None
    possible = [{m for m in ("gradcam", "hirescam", "cam") if m in r.methods} for r in report.layers]
    assert possible == [{"gradcam", "hirescam", "cam"}, *[{"gradcam", "hirescam"}] * 3]
