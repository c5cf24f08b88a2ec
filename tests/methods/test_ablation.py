"""Ablation-CAM and Recipro-CAM: numbers by hand on the toy network, and what the mathematics says on others."""

import numpy as np
import pytest
from test_identities import CLASSES, maps, network, pictures
from toy import X, toy

from onnxcam import Explainer, rewrite
from onnxcam.errors import UsageError
from onnxcam.runtime import Session

# z_0 = p_0 + 2 p_1 + 0.5 = 4.5 with p = (2.5, 0.75); without channel 0 it is 2, without channel 1 it is 3.
# z_1 = 4 p_0 - 8 p_1 - 0.5 = 3.5; without channel 0 it is -6.5, without channel 1 it is 9.5.
ALPHA = {0: (2.5 / 4.5, 1.5 / 4.5), 1: (10 / 3.5, -6 / 3.5)}


@pytest.mark.parametrize("layer", ["a", "c"])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_ablation_weight_is_the_relative_drop_of_the_score(layer: str, target: int, batch_size: int) -> None:
    (explanation,) = maps(toy(), X, target, method="ablationcam", layer=layer, batch_size=batch_size)
    a = {"a": [[[2, 2], [3, 3]], [[3, 0], [0, 0]]], "c": [[[2, 2], [3, 3]], [[3, -1], [-2, -6]]]}[layer]
    expected = np.einsum("k,khw->hw", ALPHA[target], np.array(a, np.float64))
    np.testing.assert_allclose(explanation.raw, expected, rtol=1e-5)


def test_a_negative_score_turns_the_sign_of_the_weights_as_in_the_paper() -> None:
    lowered = toy(weights="float[2,2] v = {1, 2, 4, -8}, float[2] b = {-9.5, -0.5}")  # z_0 = -5.5
    (explanation,) = maps(lowered, X, 0, method="ablationcam")
    alpha = np.array([2.5, 1.5]) / -5.5
    expected = np.einsum("k,khw->hw", alpha, np.array([[[2, 2], [3, 3]], [[3, 0], [0, 0]]], np.float64))
    np.testing.assert_allclose(explanation.raw, expected, rtol=1e-5)


def test_a_score_of_zero_gives_a_map_that_is_flagged_as_nan() -> None:
    zero = toy(weights="float[2,2] v = {0, 0, 4, -8}, float[2] b = {0, -0.5}")
    (explanation,) = maps(zero, X, 0, method="ablationcam")
    assert explanation.has_nan and explanation.warnings


@pytest.mark.parametrize("target", [0, 1])
def test_reciprocam_is_the_score_of_one_cell_above_the_lowest(target: int) -> None:
    (explanation,) = maps(toy(), X, target, method="reciprocam", batch_size=3)
    cells = {0: [[8, 2], [3, 3]], 1: [[-16, 8], [12, 12]]}[target]  # sum over k of V[class, k] A_k
    expected = (np.array(cells, np.float64) - np.min(cells)) / 4
    np.testing.assert_allclose(explanation.raw, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_reciprocam_equals_cam_without_relu_after_min_max_on_pooling_and_a_linear_layer(seed: int) -> None:
    model, x = network(seed), np.repeat(pictures(seed), CLASSES, 0)
    recipro = maps(model, x, range(CLASSES), method="reciprocam")
    cam = maps(model, x, range(CLASSES), method="cam")
    for r, c in zip(recipro, cam, strict=True):
        shifted, signed = r.raw, c.raw - c.raw.min()
        np.testing.assert_allclose(shifted / shifted.max(), signed / signed.max(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_ablationcam_is_cam_over_the_score_on_pooling_and_a_linear_layer_with_pooled_weights(seed: int) -> None:
    """On such a head y - y_k = W[class, k] mean(A_k), in closed form."""
    model, x = network(seed), pictures(seed, 2)
    ablation = maps(model, x, [1, 3], method="ablationcam")
    session = Session(rewrite(model, method="cam"))
    for sample, (explanation, target) in enumerate(zip(ablation, [1, 3], strict=True)):
        results = session.run({"x": x[sample : sample + 1], "class_index": np.array([target])})
        a, w = results["onnxcam_activations"][0].astype(np.float64), results["onnxcam_alpha"][0].astype(np.float64)
        alpha = w[:, 0, 0] * a.mean(axis=(1, 2)) / float(results["onnxcam_score"][0])
        expected = np.einsum("k,khw->hw", alpha, a)
        np.testing.assert_allclose(explanation.raw, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_ratio_ablates_the_most_and_the_least_object_like_channels_and_leaves_the_rest_at_zero() -> None:
    """Of 8 channels, a quarter from each end: 4 runs; the weights of these are those of the full ablation."""
    model, x = network(6), pictures(6)  # every channel is alive
    counted: list[tuple[int, int]] = []
    few = Explainer(model, method="ablationcam", method_options={"ratio": 0.25}, threads=1,
                    progress=lambda done, total: counted.append((done, total)))  # fmt: skip
    (partly,) = few.explain_tensor(x, 2)
    assert counted == [(4, 4)]
    (whole,) = maps(model, x, 2, method="ablationcam")
    session = Session(rewrite(model))
    a = session.run({"x": x, "class_index": np.array([2])})["onnxcam_activations"][0].astype(np.float64)
    dense = np.linalg.lstsq(a.reshape(8, -1).T, whole.raw.ravel().astype(np.float64), rcond=None)[0]
    sparse = np.linalg.lstsq(a.reshape(8, -1).T, partly.raw.ravel().astype(np.float64), rcond=None)[0]
    kept = np.abs(sparse) > 1e-4 * np.abs(dense).max()
    assert kept.sum() <= 4 and kept.any()
    np.testing.assert_allclose(sparse[kept], dense[kept], rtol=2e-3)
    object_like = projected(a)
    normalized = np.abs(a) - np.abs(a).min(axis=(1, 2), keepdims=True)
    share = (normalized * object_like).sum(axis=(1, 2)) / normalized.sum(axis=(1, 2))
    chosen = {*np.argsort(share)[:2], *np.argsort(share)[-2:]}
    assert set(np.flatnonzero(kept)) <= chosen


@pytest.mark.parametrize(("ratio", "runs"), [(0.0, 2), (0.1, 2), (0.3, 4), (0.9, 8), (1.0, 8)])
def test_any_ratio_ablates_at_least_one_channel_of_each_end_and_none_twice(ratio: float, runs: int) -> None:
    counted: list[tuple[int, int]] = []
    explainer = Explainer(network(6), method="ablationcam", method_options={"ratio": ratio}, threads=1,
                          progress=lambda done, total: counted.append((done, total)))  # fmt: skip
    explainer.explain_tensor(pictures(6), 2)
    assert counted == [(runs, runs)]


def projected(a: np.ndarray) -> np.ndarray:
    """pytorch-grad-cam's object mask: |first principal component| above 1 % of its range, by full SVD."""
    cells = a.reshape(len(a), -1).T
    _, _, rows = np.linalg.svd(cells - cells.mean(axis=0), full_matrices=False)
    projection = np.abs((cells - cells.mean(axis=0)) @ rows[0])
    projection -= projection.min()
    return (projection / projection.max() > 0.01).reshape(a.shape[1:])


def test_options_are_checked_against_the_method() -> None:
    with pytest.raises(UsageError, match="method `ablationcam` has no option `ration`") as error:
        Explainer(toy(), method="ablationcam", method_options={"ration": 0.5})
    assert "`ratio` (1.0)" in error.value.hint
    with pytest.raises(UsageError, match="method `gradcam` has no option `ratio`"):
        Explainer(toy(), method_options={"ratio": 0.5})
    with pytest.raises(UsageError, match="option `ratio` takes float, not `half`"):
        Explainer(toy(), method="ablationcam", method_options={"ratio": "half"})
    with pytest.raises(UsageError, match=r"option `ratio` is 1\.5"):
        Explainer(toy(), method="ablationcam", method_options={"ratio": 1.5})
    with pytest.raises(UsageError, match="option `quirks` is `captum`"):
        Explainer(toy(), method="ablationcam", method_options={"quirks": "captum"})


def test_quirks_are_zero_where_activations_are_not_negative() -> None:
    model, x = network(2), pictures(2, 2)
    own = maps(model, x, 1, method="ablationcam")
    peer = maps(model, x, 1, method="ablationcam", method_options={"quirks": "pytorch-grad-cam"})
    for o, p in zip(own, peer, strict=True):
        np.testing.assert_allclose(o.raw, p.raw, rtol=0, atol=1e-5 * np.abs(p.raw).max())


@pytest.mark.parametrize("method", ["ablationcam", "reciprocam"])
def test_a_batch_equals_single_runs_and_any_batch_size(method: str) -> None:
    x, targets = pictures(3, 3), [0, 2, 4]
    whole = Explainer(network(3), method=method, threads=1).explain_tensor(x, targets)
    small = Explainer(network(3, batch="1"), method=method, threads=1, batch_size=5)
    for sample, target, expected in zip(x, targets, whole, strict=True):
        (alone,) = small.explain_tensor(sample[None], target)
        np.testing.assert_allclose(alone.raw, expected.raw, rtol=0, atol=1e-5 * np.abs(expected.raw).max())


def test_eigen_smooth_needs_weights_and_is_refused_where_the_method_makes_the_map() -> None:
    with pytest.raises(UsageError, match="method `reciprocam` has no weighted sum of channels to smooth"):
        Explainer(toy(), method="reciprocam", eigen_smooth=True)


def test_an_interrupted_loop_leaves_the_explainer_as_it_was() -> None:
    calls = [0]

    def stop(done: int, total: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt

    explainer = Explainer(network(4), method="ablationcam", threads=1, batch_size=2, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        explainer.explain_tensor(pictures(4), 1)
    (after,) = explainer.explain_tensor(pictures(4), 1)
    (clean,) = maps(network(4), pictures(4), 1, method="ablationcam", batch_size=2)
    assert np.array_equal(after.raw, clean.raw)
