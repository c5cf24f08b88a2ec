"""Deep feature factorisation: the defining properties of the factors, and what its maps add up to."""

import numpy as np
import pytest
from test_identities import maps, network, pictures, weight

from onnxcam import rewrite
from onnxcam.errors import UsageError
from onnxcam.methods.factorization import factorized
from onnxcam.runtime import Session


def matrix(seed: int = 0, k: int = 8, cells: int = 36) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(k, cells)), 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_residual_never_grows_and_the_factors_are_not_negative(seed: int) -> None:
    a = matrix(seed)
    norms = []
    for iterations in (*range(1, 40), 200, 1000):
        w, h = factorized(a, 4, iterations, tolerance=0.0)
        assert w.min() >= 0 and h.min() >= 0
        np.testing.assert_allclose(h.max(axis=1), 1)
        norms.append(np.linalg.norm(a - w @ h))
    assert np.all(np.diff(norms) <= 1e-12) and norms[0] > 1.02 * norms[-1]
    # No matrix of rank 4 is nearer than the singular value decomposition's, and the factors are not far from it.
    best = np.linalg.norm(np.linalg.svd(a, compute_uv=False)[4:])
    assert best < norms[-1] < 1.25 * best


def test_the_factors_are_where_no_step_leads_down() -> None:
    """Karush-Kuhn-Tucker: the gradient is 0 where a factor is positive, and not negative where it is 0."""
    a = matrix(3)
    w, h = factorized(a, 3, 20000, tolerance=0.0)
    for factor, gradient in ((w, (w @ h - a) @ h.T), (h, w.T @ (w @ h - a))):
        scale = np.abs(a).max()
        assert np.abs(gradient[factor > 1e-3]).max() < 1e-4 * scale
        assert gradient.min() > -1e-3 * scale


def test_parts_that_do_not_overlap_are_found_as_they_are() -> None:
    w = np.array([[2, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 1.5], [0, 0, 4]])
    h = np.zeros((3, 12))
    h[0, :4], h[1, 4:7], h[2, 7:] = [1, 0.5, 0.25, 0.5], [0.2, 1, 0.1], [0.3, 0.3, 1, 0.6, 0.9]
    found, where = factorized(w @ h, 3, 5000, tolerance=0.0)
    order = [int(np.argmax(where @ row)) for row in h]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(where[order], h, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[:, order], w, rtol=0, atol=5e-3)


def test_more_concepts_than_cells_or_channels_are_as_many_as_there_can_be() -> None:
    w, h = factorized(matrix(k=3), 9)
    assert (w.shape, h.shape) == ((3, 3), (3, 36))
    w, h = factorized(np.zeros((4, 6)), 2)
    assert not (w @ h).any()


@pytest.mark.parametrize("target", [1, 3])
def test_on_pooling_and_a_linear_layer_a_concepts_gain_is_its_product_with_the_class_weights(target: int) -> None:
    """z(concept everywhere) - z(none) = v W_j, so that the maps add up to v (A - min A), less what is left over."""
    model, x = network(6), pictures(6)
    options = {"components": 5}
    found = [maps(model, x, target, method="dff", method_options=options | {"rank": rank})[0] for rank in range(5)]
    gains = found[0].provenance["found"]["concept_gains"][0]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0
    for gain, explanation in zip(gains, found, strict=True):
        assert explanation.raw.ravel()[np.abs(explanation.raw).argmax()] == pytest.approx(gain, rel=1e-5)
        assert explanation.is_empty == (gain <= 0)
    session = Session(rewrite(model, method="activationmap"))
    (a,) = session.run({"x": x, "class_index": np.array([target])})["onnxcam_activations"].astype(np.float64)
    cells = a.reshape(8, 36)
    v = weight(model, "v").astype(np.float64)[target]
    above = cells - cells.min(axis=1, keepdims=True)
    left = found[0].provenance["found"]["residual"][0] * np.linalg.norm(above)
    difference = np.linalg.norm(sum(e.raw.astype(np.float64).ravel() for e in found) - v @ above)
    assert difference <= np.linalg.norm(v) * left + 1e-5
    assert left < 0.2 * np.linalg.norm(above)
    w, _ = factorized(above, 5)
    np.testing.assert_allclose(gains, sorted(v @ w, reverse=True), rtol=1e-4, atol=1e-5)


def test_a_rank_beyond_the_concepts_is_refused() -> None:
    with pytest.raises(UsageError, match="concept of rank 3, and there are 3"):
        maps(network(6), pictures(6), 1, method="dff", method_options={"components": 3, "rank": 3})
