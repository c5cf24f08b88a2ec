"""What the mathematics says about maps of any network: equalities between methods, classes, batches."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from toy import X, toy

import onnxcam
from onnxcam import Explainer
from onnxcam.errors import UsageError
from onnxcam.explanation import Explanation
from onnxcam.runtime import Session

SEEDS = range(4)
CLASSES = 5


def network(seed: int, tail: str = "p = GlobalAveragePool(a)", batch: str = "N", features: int = 8) -> ModelProto:
    """Conv, ReLU, Conv, ReLU -> a (N, 8, 6, 6), `tail` -> p (N, features, 1, 1), one linear layer -> z (N, 5)."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        network (float[{batch},3,12,12] x) => (float[{batch},{CLASSES}] z)
        {{
            h = Conv<strides=[2,2], pads=[1,1,1,1], kernel_shape=[4,4]>(x, w1, b1)
            i = Relu(h)
            c = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(i, w2, b2)
            a = Relu(c)
            {tail}
            f = Flatten(p)
            z = Gemm<transB=1>(f, v, b)
        }}""")
    rng = np.random.default_rng(seed)
    shapes = {"w1": (6, 3, 4, 4), "b1": (6,), "w2": (8, 6, 3, 3), "b2": (8,), "v": (CLASSES, features), "b": (CLASSES,)}
    shapes |= {"w3": (8, 8, 3, 3), "b3": (8,)} if "w3" in tail else {}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def pictures(seed: int, n: int = 1) -> np.ndarray:
    return np.random.default_rng(seed + 100).normal(size=(n, 3, 12, 12)).astype(np.float32)


def weight(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def maps(model: ModelProto, x: np.ndarray, target: object = None, **options: object) -> list[Explanation]:
    return Explainer(model, threads=1, **options).explain_tensor(x, target)


@pytest.mark.parametrize("seed", SEEDS)
def test_cam_gradcam_and_hirescam_agree_on_pooling_and_a_linear_layer(seed: int) -> None:
    model, x = network(seed), np.repeat(pictures(seed), CLASSES, 0)
    cam, gradcam, hirescam = (maps(model, x, range(CLASSES), method=m) for m in ("cam", "gradcam", "hirescam"))
    assert sum(not e.is_empty for e in cam) >= 2
    for c, g, h in zip(cam, gradcam, hirescam, strict=True):
        np.testing.assert_allclose(g.values, c.values, rtol=0, atol=4e-7)
        np.testing.assert_allclose(h.values, c.values, rtol=0, atol=4e-7)
        # alpha differs by the number of cells that the pooling averages over.
        np.testing.assert_allclose(g.raw * 36, c.raw, rtol=2e-6, atol=2e-6 * np.abs(c.raw).max())


def test_gradcam_and_hirescam_differ_where_the_gradient_varies_over_space() -> None:
    model, x = network(0), pictures(0)
    (g,), (h,) = maps(model, x, 0, layer="i"), maps(model, x, 0, layer="i", method="hirescam")
    assert np.abs(g.values - h.values).max() > 0.1


LINEAR_TAILS = {
    "pooling": "p = GlobalAveragePool(a)",
    "a convolution, then pooling": "d = Conv<pads=[1,1,1,1]>(a, w3, b3) p = GlobalAveragePool(d)",
    "average pooling, twice": "d = AveragePool<kernel_shape=[3,3], strides=[2,2]>(a) p = GlobalAveragePool(d)",
    "flattening": "p = Identity(a)",
}


@pytest.mark.parametrize("tail", LINEAR_TAILS)
@pytest.mark.parametrize("seed", SEEDS)
def test_raw_of_hirescam_sums_to_the_score_less_the_score_at_zero_activation(seed: int, tail: str) -> None:
    """Completeness on a linear head: sum over k, h, w of G A = z_c - z_c(A = 0), in float64 by `onnx.reference`."""
    model = network(seed, LINEAR_TAILS[tail], features=288 if tail == "flattening" else 8)
    x = np.repeat(pictures(seed), CLASSES, 0)
    head = double(model, after="a")
    whole = double(model)
    (a,) = ReferenceEvaluator(cut(whole, "a")).run(None, {"x": x[:1].astype(np.float64)})
    evaluator = ReferenceEvaluator(head)
    expected = (evaluator.run(None, {"a": a})[0] - evaluator.run(None, {"a": 0 * a})[0])[0]
    got = maps(model, x, range(CLASSES), method="hirescam", layer="a")
    for explanation, change in zip(got, expected, strict=True):
        scale = np.abs(explanation.raw).astype(np.float64).sum()
        assert abs(explanation.raw.astype(np.float64).sum() - change) <= 3e-7 * scale


def double(model: ModelProto, after: str | None = None) -> ModelProto:
    """The model in float64; from the value `after` on, where one is given."""
    twin = ModelProto()
    twin.CopyFrom(model)
    constants = [a.t for n in twin.graph.node for a in n.attribute if a.HasField("t")]
    for cast in (a for n in twin.graph.node if n.op_type == "Cast" for a in n.attribute):
        cast.i = onnx.TensorProto.DOUBLE if cast.i == onnx.TensorProto.FLOAT else cast.i
    for tensor in (*twin.graph.initializer, *constants):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*twin.graph.input, *twin.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    if after is not None:
        first = next(i for i, n in enumerate(twin.graph.node) if after in n.output) + 1
        del twin.graph.node[:first]
        twin.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(after, onnx.TensorProto.DOUBLE, None))
    return twin


def cut(model: ModelProto, output: str) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    del twin.graph.output[:]
    twin.graph.output.append(onnx.ValueInfoProto(name=output))
    return twin


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "cam"])
def test_relabelled_classes_permute_the_maps(method: str) -> None:
    model, x = network(1), np.repeat(pictures(1), CLASSES, 0)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = ModelProto()
    shuffled.CopyFrom(model)
    for tensor in shuffled.graph.initializer:
        if tensor.name in ("v", "b"):
            tensor.CopyFrom(numpy_helper.from_array(weight(model, tensor.name)[order], tensor.name))
    plain = maps(model, x, range(CLASSES), method=method)
    permuted = maps(shuffled, x, range(CLASSES), method=method)
    for new, old in enumerate(order):
        np.testing.assert_allclose(permuted[new].raw, plain[old].raw, rtol=1e-6, atol=1e-7)
        assert permuted[new].score == pytest.approx(plain[old].score, rel=1e-6)
    assert np.abs(plain[0].raw - plain[1].raw).max() > 0.01


def test_class_index_of_the_rewritten_model_is_minus_one_for_predicted_one_for_all_or_one_per_sample() -> None:
    model, x = network(9), pictures(9, 4)
    logits = Session(model, threads=1).run({"x": x})["z"]
    best = logits.argmax(1)
    assert len(set(best.tolist())) > 1
    session = Session(onnxcam.rewrite(model), threads=1)
    for asked, explained in (
        ([-1], best),
        ([3], [3, 3, 3, 3]),
        ([4, -1, 0, 2], [4, best[1], 0, 2]),
    ):
        feed = {"x": x, "class_index": np.array(asked, np.int64)}
        got = session.run(feed, ["onnxcam_index", "onnxcam_score", "onnxcam_logits"])
        assert got["onnxcam_index"].tolist() == list(explained)
        np.testing.assert_allclose(got["onnxcam_score"], logits[range(4), explained], rtol=1e-6)
        np.testing.assert_allclose(got["onnxcam_logits"], logits, rtol=1e-6, atol=1e-6)


def test_the_predicted_class_is_explained_by_default_sample_by_sample() -> None:
    model, x = network(9), pictures(9, 4)
    best = Session(model, threads=1).run({"x": x})["z"].argmax(1)
    default, named = maps(model, x), maps(model, x, best)
    assert [e.class_index for e in default] == best.tolist()
    for d, n in zip(default, named, strict=True):
        assert np.array_equal(d.values, n.values) and d.score == n.score


@pytest.mark.parametrize(
    ("method", "layer"), [("gradcam", "a"), ("gradcam", "i"), ("hirescam", "a"), ("hirescam", "i"), ("cam", "a")]
)
def test_a_batch_equals_single_runs(method: str, layer: str) -> None:
    x, targets = pictures(3, 5), [0, -1, 2, 2, 4]
    explainer = Explainer(network(3), method=method, layer=layer, threads=1)
    together = explainer.explain_tensor(x, targets)
    for sample, target, e in zip(x, targets, together, strict=True):
        (alone,) = explainer.explain_tensor(sample[None], target)
        np.testing.assert_allclose(e.raw, alone.raw, rtol=1e-5, atol=1e-6 * np.abs(alone.raw).max())
        np.testing.assert_allclose(e.values, alone.values, rtol=0, atol=5e-6)
        assert e.class_index == alone.class_index


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_a_model_of_fixed_batch_explains_any_number_of_samples(batch: int, n: int) -> None:
    x, targets = pictures(4, n), [i % CLASSES for i in range(n)]
    expected = maps(network(4), x, targets)
    got = maps(network(4, batch=str(batch)), x, targets)
    assert len(got) == n
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g.raw, e.raw, rtol=1e-5, atol=1e-6 * np.abs(e.raw).max())
        assert g.class_index == e.class_index


def test_no_samples_give_no_explanations() -> None:
    assert maps(network(4), pictures(4, 0)) == []


def test_targets_must_be_one_or_as_many_as_samples() -> None:
    with pytest.raises(UsageError, match="2 targets for 3 samples"):
        maps(network(4), pictures(4, 3), [0, 1])


@pytest.mark.parametrize("bad", [pictures(0)[0], pictures(0).astype(np.float64), pictures(0)[:, :, :, :11]])
def test_a_tensor_that_the_model_would_not_take_is_refused_with_what_it_takes(bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"`x` takes float32 \(N, 3, 12, 12\), not " + str(bad.dtype)):
        maps(network(0), bad)


def test_a_constant_factor_on_the_weights_of_the_head_changes_raw_but_not_values() -> None:
    model, x = network(5), pictures(5)
    louder = ModelProto()
    louder.CopyFrom(model)
    for tensor in louder.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(weight(model, "v") * np.float32(8), "v"))
    (plain,), (loud,) = maps(model, x, 2), maps(louder, x, 2)
    np.testing.assert_allclose(loud.raw, 8 * plain.raw, rtol=1e-6)
    np.testing.assert_allclose(loud.values, plain.values, rtol=0, atol=2e-6)


def test_float16_models_are_differentiated_in_float32() -> None:
    """The float16 network's own activations, weighed by the float64 gradient of its own float16 weights."""
    model = toy()
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    (explanation,) = maps(half, X.astype(np.float16), 1)
    np.testing.assert_allclose(explanation.raw, [[-4, 2], [3, 3]], rtol=1e-6)
    assert explanation.score == 3.5


def test_names_of_ours_that_the_model_has_already_do_no_harm() -> None:
    model = network(6)
    ours = {"x": "class_index", "i": "onnxcam_alpha", "c": "onnxcam/ReduceSum_1", "f": "onnxcam_index"}
    taken = ModelProto()
    taken.CopyFrom(model)
    taken.graph.input[0].name = ours["x"]
    for node in taken.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = ours.get(name, name)
    x = pictures(6)
    (plain,), (renamed,) = maps(model, x, 2), maps(taken, x, 2)
    assert np.array_equal(renamed.raw, plain.raw) and renamed.score == plain.score
    onnx.checker.check_model(onnxcam.rewrite(taken))
