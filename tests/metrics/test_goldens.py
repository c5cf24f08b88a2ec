"""The same numbers as pytorch-grad-cam 1.5.7 (goldens.npz, written by make_goldens.py)."""

from pathlib import Path

import numpy as np
import pytest

from onnxcam.metrics import (
    arcc,
    coherency,
    complexity,
    drop_in_confidence,
    increase_in_confidence,
    road_combined,
    road_lerf,
    road_morf,
)

GOLDENS = np.load(Path(__file__).with_name("goldens.npz"))


@pytest.fixture(params=[0, 1])
def case(request):
    i = request.param
    weights, wanted = GOLDENS["weights"], GOLDENS["classes"][i]

    def score(samples):
        logits = samples.reshape(len(samples), -1) @ weights.T
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponentials / exponentials.sum(axis=1, keepdims=True))[:, wanted]

    return i, score, GOLDENS["x"][i], GOLDENS["cams"][i]


def test_drop_and_increase_equal(case):
    i, score, x, cam = case
    before, after = score(np.stack([x, x * cam]))
    assert after - before == pytest.approx(GOLDENS["change"][i], abs=1e-6)
    assert drop_in_confidence(before, after) == pytest.approx(GOLDENS["drop"][i], abs=1e-6)
    assert increase_in_confidence(before, after) == GOLDENS["increase"][i]


@pytest.mark.parametrize(("curve", "name"), [(road_morf, "morf"), (road_lerf, "lerf")])
def test_road_without_noise_equals(case, curve, name):
    i, score, x, cam = case
    values = curve(score, x, cam, percentiles=GOLDENS["percentiles"], noise=0.0)
    np.testing.assert_allclose(values, GOLDENS[name][:, i], atol=2e-6)


def test_road_combined_equals(case):
    i, score, x, cam = case
    value = road_combined(score, x, cam, percentiles=GOLDENS["percentiles"], noise=0.0)
    assert value == pytest.approx(GOLDENS["combined"][i], abs=2e-6)


def test_arcc_equals(case):
    i, score, x, cam = case
    road = road_combined(score, x, cam, percentiles=GOLDENS["percentiles"], noise=0.0)
    value = arcc(coherency(cam, GOLDENS["again"][i]), complexity(cam), road)
    assert value == pytest.approx(GOLDENS["arcc"][i], abs=1e-5)
