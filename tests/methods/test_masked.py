"""Methods on masked pictures: numbers by hand, plain loops in NumPy, and linear models with known answers."""

from math import e

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser
from test_identities import maps, network, pictures, weight
from toy import A, X, toy

from onnxcam import Explainer
from onnxcam.runtime import Session

SMALL = {
    "rise": {"masks": 12, "cells": 3},
    "occlusion": {"window": 5},
    "sscam": {"samples": 3},
    "iscam": {"samples": 4},
}
MASKED = ("scorecam", "sscam", "iscam", "rise", "occlusion")


def linear(height: int = 6, width: int = 10) -> tuple[ModelProto, np.ndarray]:
    """z = v x + b over all pixels, behind a map `a` that is the picture itself; v (2, 3, H, W)."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        linear (float[N,3,{height},{width}] x) => (float[N,2] z)
        <float[2] b = {{0.25, -3}}>
        {{ a = Identity(x)
           f = Flatten(a) z = Gemm<transB=1>(f, v, b) }}""")
    v = np.random.default_rng(3).normal(size=(2, 3, height, width)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(v.reshape(2, -1), "v"))
    return model, v


def test_scorecam_weights_are_the_softmax_of_scores_under_the_layers_own_channels() -> None:
    # U_0 = [[0, 0], [1, 1]] leaves p = (1.5, 0.5), so z_0 = 3; U_1 = [[1, 0], [0, 0]] leaves p = (0.5, 1.5), so 4.
    (explanation,) = maps(toy(), X, 0, method="scorecam")
    np.testing.assert_allclose(explanation.raw, (A[0] + e * A[1]) / (1 + e), rtol=1e-5)


def test_scorecam_weights_do_not_change_when_the_score_is_shifted() -> None:
    model, x = network(6), pictures(6)
    louder = ModelProto()
    louder.CopyFrom(model)
    for tensor in louder.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(weight(model, "b") + np.float32(4), "b"))
    (plain,), (shifted,) = (maps(m, x, 2, method="scorecam") for m in (model, louder))
    np.testing.assert_allclose(shifted.raw, plain.raw, rtol=2e-5, atol=2e-6)
    assert shifted.score == pytest.approx(plain.score + 4, rel=1e-5)


def enlarged(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with aligned corners, scaled to [0, 1]."""
    h, w = channel.shape
    rows = np.stack([np.interp(np.linspace(0, w - 1, width), np.arange(w), row) for row in channel])
    both = np.stack([np.interp(np.linspace(0, h - 1, height), np.arange(h), column) for column in rows.T]).T
    return (both - both.min()) / (both.max() - both.min() + 1e-8)


def under_masks(target: int, factors: list[float], seed: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A (8, 6, 6) of the layer `i` and mean scores (6,) of its channels as masks, one plain run each."""
    model, x = network(seed), pictures(seed)
    (a,) = Session(with_output(model, "i"), threads=1).run({"x": x}, ["i"])["i"]
    session = Session(model, threads=1)
    scores = [
        np.mean([session.run({"x": (x * enlarged(c, 12, 12) * f).astype(np.float32)})["z"][0, target] for f in factors])
        for c in a
    ]
    return a.astype(np.float64), np.array(scores, np.float64)


def with_output(model: ModelProto, value: str) -> ModelProto:
    twin = ModelProto()
    twin.CopyFrom(model)
    twin.graph.output.add().name = value
    return twin


def softmax(z: np.ndarray) -> np.ndarray:
    raised = np.exp(z - z.max())
    return raised / raised.sum()


@pytest.mark.parametrize(
    ("method", "options", "factors"),
    [("scorecam", {}, [1.0]), ("iscam", {"samples": 5}, [0.2, 0.4, 0.6, 0.8, 1.0]), ("sscam", {"std": 0.0}, [1.0])],
)
def test_weights_are_the_softmax_of_mean_scores_over_masks(
    method: str, options: dict[str, float], factors: list[float]
) -> None:
    a, scores = under_masks(3, factors)
    (got,) = maps(network(6), pictures(6), 3, method=method, method_options=options, layer="i", batch_size=4)
    expected = np.einsum("k,khw->hw", softmax(scores), a)
    np.testing.assert_allclose(got.raw, expected, rtol=0, atol=1e-5 * expected.max())


def test_faster_scorecam_takes_only_the_channels_that_vary_most_over_space() -> None:
    a, scores = under_masks(3, [1.0])
    best = np.argsort(-a.std(axis=(1, 2)))[:2]
    counted: list[tuple[int, int]] = []
    explainer = Explainer(network(6), method="scorecam", method_options={"channels": 2}, layer="i", threads=1,
                          progress=lambda done, total: counted.append((done, total)))  # fmt: skip
    (got,) = explainer.explain_tensor(pictures(6), 3)
    expected = np.einsum("k,khw->hw", softmax(scores[best]), a[best])
    np.testing.assert_allclose(got.raw, expected, rtol=0, atol=1e-5 * expected.max())
    assert counted == [(2, 2)]


def test_noise_of_sscam_comes_from_the_seed_and_from_nothing_else() -> None:
    x = pictures(6, 2)
    options = {"samples": 4, "std": 0.5}

    def raws(seed: int, samples: np.ndarray, batch_size: int = 32) -> list[np.ndarray]:
        found = maps(network(6), samples, 1, method="sscam", method_options=options, seed=seed, batch_size=batch_size)
        return [explanation.raw for explanation in found]

    first = raws(1, x)
    np.testing.assert_array_equal(first, raws(1, x))
    np.testing.assert_allclose(first[1], raws(1, x[1:], batch_size=3)[0], rtol=1e-5, atol=1e-6)
    assert np.abs(first[0] - raws(2, x)[0]).max() > 1e-4


def test_rise_on_a_picture_that_is_not_square_is_the_score_weighted_sum_of_its_masks() -> None:
    model, v = linear()
    x = np.random.default_rng(0).normal(size=(1, 3, 6, 10)).astype(np.float32)
    options = {"masks": 9, "cells": 4, "p": 0.3}
    (got,) = maps(model, x, 0, method="rise", method_options=options, batch_size=4, seed=5)
    rng, expected = np.random.default_rng(5), np.zeros((6, 10))
    for _ in range(9):
        grid = (rng.random((1, 4, 4)) < 0.3)[0].astype(np.float64)
        rows = np.stack([np.interp((np.arange(15) + 0.5) * 4 / 15 - 0.5, np.arange(4), row) for row in grid])
        mask = np.stack([np.interp((np.arange(10) + 0.5) * 4 / 10 - 0.5, np.arange(4), c) for c in rows.T]).T
        y, left = rng.integers(0, 2), rng.integers(0, 3)
        mask = mask[y : y + 6, left : left + 10]
        expected += mask * ((v[0] * x[0] * mask).sum() + 0.25)
    np.testing.assert_allclose(got.raw, (expected - expected.min()) / (9 * 0.3), rtol=1e-4, atol=1e-4)


def test_rise_that_hides_nothing_tells_no_pixel_from_another() -> None:
    (got,) = maps(network(2), pictures(2), 1, method="rise", method_options={"masks": 3, "p": 1.0})
    np.testing.assert_allclose(got.raw, np.zeros((12, 12)), atol=1e-5 * abs(got.score))


def test_the_map_of_rise_of_a_negative_logit_is_not_empty() -> None:
    model, _ = linear(8, 8)
    for tensor in model.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([-1000, -1000]), "b"))
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    (got,) = maps(model, x, 0, method="rise", method_options={"masks": 50})
    assert got.score < 0
    assert not got.is_empty


def test_rise_finds_what_a_linear_model_looks_at() -> None:
    """Only the top left quarter counts: there the map is higher than anywhere else, by many standard errors."""
    model, v = linear(8, 8)
    v[:] = 0
    v[0, :, :4, :4] = 1
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(v.reshape(2, -1), "v"))
    (got,) = maps(model, np.ones((1, 3, 8, 8), np.float32), 0, method="rise", method_options={"masks": 800, "cells": 2})
    assert got.raw[:3, :3].min() > got.raw[4:, 4:].max() + 2


def test_occlusion_of_single_pixels_is_the_pixels_share_of_a_linear_score() -> None:
    model, v = linear()
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 10)).astype(np.float32)
    found = maps(model, x, [0, 1], method="occlusion", method_options={"window": 1}, batch_size=7)
    for got, sample, target in zip(found, x, (0, 1), strict=True):
        np.testing.assert_allclose(got.raw, (v[target] * sample).sum(axis=0), rtol=0, atol=3e-5)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 4), (4, 3), (0, 0), (20, 1)])
def test_occlusion_is_the_mean_drop_over_the_windows_on_a_pixel(window: int, stride: int) -> None:
    model, v = linear()
    x = np.random.default_rng(2).normal(size=(1, 3, 6, 10)).astype(np.float32)
    options = {"window": window, "stride": stride}
    (got,) = maps(model, x, 1, method="occlusion", method_options=options)
    size = min(window or 1, 6)
    step = min(stride or max(1, size // 2), size)
    share, total, count = (v[1] * x[0]).sum(axis=0), np.zeros((6, 10)), np.zeros((6, 10))
    rows = range(0, 1 + step * -(-(6 - size) // step), step)
    columns = range(0, 1 + step * -(-(10 - size) // step), step)
    for y in rows:
        for left in columns:
            here = (slice(y, y + size), slice(left, left + size))
            total[here] += share[here].sum()
            count[here] += 1
    assert count.min() >= 1
    np.testing.assert_allclose(got.raw, total / count, rtol=0, atol=2e-5)


def test_masks_of_integer_inputs_lead_to_the_number_that_means_zero() -> None:
    """uint8 input with scale 0.5 and zero point 100: hiding a pixel makes it 100, which the model reads as 0."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        quantized (uint8[N,1,2,3] x) => (float[N,1] z)
        <float scale = {0.5}, uint8 zero = {100}, float[1,1,1,1] w = {2}>
        { m = DequantizeLinear(x, scale, zero) a = Conv(m, w) axes = Constant<value_ints=[1,2,3]>()
          s = ReduceSum<keepdims=0>(a, axes) minus = Constant<value_ints=[-1,1]>() z = Reshape(s, minus) }""")
    x = np.array([[[[100, 110, 90], [0, 255, 101]]]], np.uint8)
    (got,) = maps(model, x, 0, method="occlusion", method_options={"window": 1})
    np.testing.assert_allclose(got.raw, x[0, 0] - 100.0, rtol=1e-6)


@pytest.mark.parametrize("method", MASKED)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_no_run_is_larger_than_the_batch_size_and_progress_counts_every_run(
    method: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    counted: list[tuple[int, int]] = []
    run = Session.run

    def watched(self: Session, feeds: dict[str, np.ndarray], outputs: object = None) -> dict[str, np.ndarray]:
        sizes.append(len(feeds["x"]))
        return run(self, feeds, outputs)

    explainer = Explainer(network(6), method=method, method_options=SMALL.get(method), batch_size=batch_size, threads=1,
                          progress=lambda done, total: counted.append((done, total)))  # fmt: skip
    monkeypatch.setattr(Session, "run", watched)
    explainer.explain_tensor(pictures(6, 2), 1)
    assert sizes[0] == 2 and max(sizes[1:]) == batch_size
    assert sum(sizes[1:]) == counted[-1][0] == counted[-1][1]
    assert [done for done, _ in counted] == list(np.cumsum(sizes[1:]))


@pytest.mark.parametrize("method", MASKED)
def test_an_interrupted_loop_leaves_the_explainer_as_it_was(method: str) -> None:
    stops = [True]

    def stop(done: int, total: int) -> None:
        if stops.pop() if stops else False:
            raise KeyboardInterrupt

    options = {"method": method, "method_options": SMALL.get(method), "threads": 1, "batch_size": 4}
    explainer = Explainer(network(4), progress=stop, **options)
    with pytest.raises(KeyboardInterrupt):
        explainer.explain_tensor(pictures(4), 1)
    (after,) = explainer.explain_tensor(pictures(4), 1)
    (clean,) = maps(network(4), pictures(4), 1, **{k: v for k, v in options.items() if k != "threads"})
    np.testing.assert_array_equal(after.raw, clean.raw)


@pytest.mark.parametrize("method", MASKED)
def test_a_model_of_fixed_batch_gives_the_same_maps(method: str) -> None:
    options = {"method": method, "method_options": SMALL.get(method)}
    expected = maps(network(4), pictures(4, 2), [0, 3], **options)
    got = maps(network(4, batch="3"), pictures(4, 2), [0, 3], **options)
    for g, w in zip(got, expected, strict=True):
        np.testing.assert_allclose(g.raw, w.raw, rtol=0, atol=1e-5 * np.abs(w.raw).max())


def test_the_sobel_baseline_is_the_mean_of_both_edge_filters_and_knows_no_class() -> None:
    ramp = np.zeros((1, 3, 12, 12), np.float32)
    ramp[0] = np.arange(12) * 2.0 + np.arange(12)[:, None] * 3.0  # slopes 2 and 3: the filter's sum of weights is 8
    (got,) = maps(network(0), ramp, 0, method="sobel")
    np.testing.assert_allclose(got.raw[1:-1, 1:-1], np.full((10, 10), (8 * 2 + 8 * 3) / 2), rtol=1e-6)
    np.testing.assert_allclose(got.raw[0, 1:-1], np.full(10, 8 * 2 / 2), rtol=1e-6)


def test_the_random_baseline_is_seeded() -> None:
    model, x = network(6), pictures(6, 2)
    one, same, other = (maps(model, x, 0, method="random", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one[1].raw, same[1].raw)
    assert np.abs(one[0].raw - other[0].raw).max() > 1e-3
    alpha = np.random.default_rng(1).uniform(-1, 1, (1, 8, 1, 1))[0]
    (a,) = Session(with_output(model, "a"), threads=1).run({"x": x[:1]}, ["a"])["a"]
    np.testing.assert_allclose(one[0].raw, (alpha * a).sum(axis=0), rtol=0, atol=1e-5)
