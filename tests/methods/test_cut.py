"""The cut form: prefix and head together are the model, whatever crosses beside the layer."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser
from toy import A, V, Z, toy

from onnxcam import Explainer
from onnxcam.errors import VerificationError
from onnxcam.explained import explained_model, open_graph
from onnxcam.graph.cut import head_after, past_channelwise
from onnxcam.graph.read import read
from onnxcam.methods.head import HeadRunner
from onnxcam.runtime import Session

WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (6, 4, 3, 3), "v": (5, 6)}

# How the maps `a` (N, 4, 6, 6) and `b` (N, 4, 6, 6), both made from the picture, become the scores z (N, 5).
HEADS = {
    "one path": "p = GlobalAveragePool(t) f = Flatten(p)",
    "a skip beside the layer": "s = Add(t, b) p = GlobalAveragePool(s) f = Flatten(p)",
    "a shape taken upstream of the layer": (
        "p = GlobalAveragePool(t) shape = Shape<start=0, end=1>(b) minus = Constant<value_ints=[-1]>() "
        "to = Concat<axis=0>(shape, minus) f = Reshape(p, to)"
    ),
    "a reshape to a constant batch": "p = GlobalAveragePool(t) to = Constant<value_ints=[1,6]>() f = Reshape(p, to)",
    "a reshape to a constant batch with an open end": (
        "p = GlobalAveragePool(t) to = Constant<value_ints=[1,-1]>() f = Reshape(p, to)"
    ),
    "a batch built in": (
        "p = GlobalAveragePool(t) one = Constant<value=float[1,1,1,1] {0.5}>() "
        "to = Constant<value_ints=[1,6,1,1]>() e = Expand(one, to) q = Concat<axis=0>(p, e) "
        "begin = Constant<value_ints=[0]>() end = Constant<value_ints=[1]>() r = Slice(q, begin, end, begin) "
        "f = Flatten(r)"
    ),
}
FIXED = ("a reshape to a constant batch", "a reshape to a constant batch with an open end", "a batch built in")


def network(how: str, seed: int = 0) -> ModelProto:
    batch = "1" if how in FIXED else "N"
    skip = how == "a skip beside the layer"
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        cut (float[{batch},3,6,6] x) => (float[{batch},5] z)
        {{
            c = Conv<pads=[1,1,1,1]>(x, w1)
            b = Tanh(c)
            d = Conv<pads=[1,1,1,1]>(b, w2)
            a = Relu(d)
            t = {"Identity(a)" if skip else "Conv<pads=[1,1,1,1]>(a, w3)"}
            {HEADS[how]}
            z = Gemm<transB=1>(f, v)
        }}""")
    rng = np.random.default_rng(seed)
    for name, shape in (WEIGHTS | ({"v": (5, 4)} if skip else {})).items():
        array = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 6, 6)).astype(np.float32)


def zeroed(model: ModelProto, layer: str, channel: int) -> ModelProto:
    """The whole model with one channel of a value multiplied by 0 before anybody reads it."""
    twin = ModelProto()
    twin.CopyFrom(model)
    position = next(i for i, n in enumerate(twin.graph.node) if layer in n.output)
    made = twin.graph.node[position]
    made.output[0] = "before"
    mask = np.ones((1, 4, 1, 1), np.float32)
    mask[0, channel] = 0
    twin.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    node = parser.parse_node(f"{layer} = Mul(before, mask)")
    twin.graph.node.insert(position + 1, node)
    return twin


@pytest.mark.parametrize("how", HEADS)
@pytest.mark.parametrize("layer", ["a", "b"])
def test_ablation_through_the_head_equals_rerunning_the_whole_model_with_the_channel_zeroed(
    how: str, layer: str
) -> None:
    model, x = network(how), picture()
    explainer = Explainer(model, method="ablationcam", layer=layer, threads=1, batch_size=3, normalize="none")
    for target in range(5):
        (explanation,) = explainer.explain_tensor(x, target)
        y = Session(model, threads=1).run({"x": x})["z"][0, target]
        runs = [Session(zeroed(model, layer, k), threads=1).run({"x": x})["z"][0, target] for k in range(4)]
        alpha = (y - np.array(runs, np.float64)) / y
        a = Session(with_output(model, layer), threads=1).run({"x": x}, [layer])[layer][0]
        expected = np.einsum("k,khw->hw", alpha, a)
        np.testing.assert_allclose(explanation.raw, expected, rtol=0, atol=2e-5 * np.abs(alpha).max())


def with_output(model: ModelProto, value: str) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    twin.graph.output.add().name = value
    return twin


@pytest.mark.parametrize("how", HEADS)
def test_only_a_head_with_its_batch_built_in_runs_one_sample_at_a_time_and_says_so(how: str) -> None:
    explainer = Explainer(network(how), method="ablationcam", layer="a", threads=1)
    said = [note for note in explainer.notes if "one sample at a time" in note]
    assert bool(said) == (how == "a batch built in")


def test_what_crosses_is_the_layer_and_the_float_values_beside_it() -> None:
    graph, image, _ = open_graph(read(network("a skip beside the layer")))
    head = head_after(graph, "a", ["z"], image.name)
    assert (head.crossing, [n.op_type for n in head.model.graph.node]) == (
        ("b",),
        ["Identity", "Add", "GlobalAveragePool", "Flatten", "Gemm"],
    )
    graph, image, _ = open_graph(read(network("a shape taken upstream of the layer")))
    assert head_after(graph, "a", ["z"], image.name).crossing == ("b",)
    assert head_after(graph, "t", ["z"], image.name).crossing == ("b",)


def test_a_split_layer_leaves_its_node_in_the_prefix_and_its_other_half_crosses() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        split (float[N,2,4,4] x) => (float[N,1] z)
        { a, b = Split<axis=1, num_outputs=2>(x) r = Relu(a) s = Add(r, b) p = GlobalAveragePool(s) z = Flatten(p) }""")
    graph, image, _ = open_graph(read(model), size=(4, 4))
    head = head_after(graph, "a", ["z"], image.name)
    assert head.crossing == ("b",)
    a, b = np.full((3, 1, 4, 4), -2, np.float32), np.full((3, 1, 4, 4), 5, np.float32)
    np.testing.assert_array_equal(Session(head.model, threads=1).run({"a": a, "b": b})["z"], [[5]] * 3)


@pytest.mark.parametrize(("layer", "end"), [("c", "p"), ("a", "p"), ("p", "p")])
def test_channels_stay_apart_up_to_the_last_pooling(layer: str, end: str) -> None:
    graph, _, _ = open_graph(read(toy()), size=(2, 2))
    assert past_channelwise(graph, layer) == end


def test_a_value_with_two_readers_is_not_passed() -> None:
    graph, _, _ = open_graph(read(network("a skip beside the layer")))
    assert past_channelwise(graph, "b") == "b"


def test_the_head_of_the_toy_is_its_pooling_and_its_linear_layer() -> None:
    graph, image, _ = open_graph(read(toy()), size=(2, 2))
    explained = explained_model(graph, image, method="reciprocam", layer="a")
    (layer,) = explained.layers
    assert layer.cut is not None and layer.cut.head.chosen == ("class_index",)
    runner = HeadRunner(layer.cut.head, Session(layer.cut.head.model, threads=1))
    values = np.stack([A, 2 * A, 0 * A]).astype(np.float32)
    offset = Z - V @ A.mean(axis=(1, 2))
    for target in (0, 1):
        expected = [(V @ (f * A.mean(axis=(1, 2))) + offset)[target] for f in (1, 2, 0)]
        np.testing.assert_allclose(runner.scores(values, [], {"class_index": np.array([target])}), expected, rtol=1e-6)


def test_a_head_that_differs_from_the_whole_model_is_an_error() -> None:
    graph, image, _ = open_graph(read(toy()), size=(2, 2))
    explained = explained_model(graph, image, method="reciprocam", layer="a")
    cut = explained.layers[0].cut
    assert cut is not None
    runner = HeadRunner(cut.head, Session(cut.head.model, threads=1))
    values = A[np.newaxis].astype(np.float32)
    with pytest.raises(VerificationError, match=r"cut behind `a`, the model scores 4.5 instead of 4.6"):
        runner.verified(values, 4.6, lambda v: runner.scores(v, [], {"class_index": np.array([0])}))


LAYOUTS = {
    "channels last": "l = Transpose<perm=[0,2,3,1]>(a) s = Add(l, none) g = ReduceMean<keepdims=0>(s, spatial)",
    "tokens": (
        "r = Reshape(a, rows) l = Transpose<perm=[0,2,1]>(r) s = Add(l, none) g = ReduceMean<keepdims=0>(s, middle)"
    ),
    "tokens behind a class token": (
        "r = Reshape(a, rows) l = Transpose<perm=[0,2,1]>(r) m = ReduceMean<keepdims=1>(l, middle) q = Mul(m, nought) "
        "t = Concat<axis=1>(q, l) s = Add(t, none) e = ReduceSum<keepdims=0>(s, middle) g = Div(e, cells)"
    ),
}


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("method", ["ablationcam", "reciprocam", "dff"])
def test_a_layer_that_lies_otherwise_gives_the_map_of_its_twin_with_channels_first(method: str, how: str) -> None:
    def model(body: str) -> ModelProto:
        made = parser.parse_model(f"""
            <ir_version: 8, opset_import: ["" : 18]>
            lies (float[N,3,4,6] x) => (float[N,5] z)
            <float none = {{0}}, float nought = {{0}}, float cells = {{24}}, int64[2] spatial = {{1, 2}},
             int64[1] middle = {{1}}, int64[3] rows = {{0, 4, 24}}>
            {{ c = Conv<pads=[1,1,1,1]>(x, w1) a = Relu(c) {body} h = Tanh(g) z = Gemm<transB=1>(h, v) }}""")
        rng = np.random.default_rng(2)
        for name, shape in {"w1": (4, 3, 3, 3), "v": (5, 4)}.items():
            made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        return made

    x = np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float32)
    first = Explainer(model("p = GlobalAveragePool(a) g = Flatten(p)"), method=method, layer="a", threads=1)
    other = Explainer(model(LAYOUTS[how]), method=method, layer="s", threads=1, batch_size=5)
    for got, expected in zip(other.explain_tensor(x, [1, 3]), first.explain_tensor(x, [1, 3]), strict=True):
        assert np.ptp(expected.raw) > 0.1
        np.testing.assert_allclose(got.raw, expected.raw, rtol=0, atol=1e-5 * np.abs(expected.raw).max())
