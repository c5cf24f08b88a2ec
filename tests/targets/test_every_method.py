"""Every method explains every kind of target: two ways of saying the same score give the same map."""

import numpy as np
import pytest
from target_networks import network, segmenter

from onnxcam import Explainer
from onnxcam.errors import UnsupportedError
from onnxcam.methods import METHODS
from onnxcam.targets import Against, Function, Linear, Segmentation, TargetSpec

OPTIONS = {
    "rise": {"masks": 6, "cells": 2},
    "smoothgrad": {"samples": 2},
    "vargrad": {"samples": 2},
    "integratedgradients": {"steps": 4},
    "sscam": {"samples": 2},
}
TOKENS = ("vitreciprocam", "legrad")


def maps(model, method: str, target: TargetSpec, x: np.ndarray, asked: list[TargetSpec]) -> list[np.ndarray]:
    layer = None if METHODS[method].at_input else "a"
    options = OPTIONS.get(method, {})
    made = Explainer(model, method=method, method_options=options, layer=layer, target=target, threads=1)
    return [e.raw for e in made.explain_tensor(x, asked)]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("cam", *TOKENS)])
def test_a_class_under_a_mask_is_the_sum_weighed_by_that_mask(method: str) -> None:
    x = np.random.default_rng(8).standard_normal((2, 3, 8, 12)).astype(np.float32)
    masks = np.random.default_rng(9).random((2, 8, 12)) < 0.4
    weights = [np.eye(3)[c][:, None, None] * mask for c, mask in zip((2, 1), masks, strict=True)]
    asked = [Segmentation(c, mask=mask) for c, mask in zip((2, 1), masks, strict=True)]
    regions = maps(segmenter(), method, Segmentation(), x, asked)  # type: ignore[arg-type]
    sums = maps(segmenter(), method, Linear({}, ("y",)), x, [Linear({"y": w}) for w in weights])
    for one, other in zip(regions, sums, strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("method", ["hirescam", "gradcam++", "eigengradcam", "ablationcam", "occlusion", "fullgrad"])
def test_a_class_against_another_is_the_function_that_subtracts_them(method: str) -> None:
    x = np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)
    difference = Function(
        lambda op, outputs: op.ReduceSum(op.Mul(outputs["y"], op.floats([1.0, 0, -1])), [1], keepdims=0)
    )
    pairs = maps(network(), method, Against(0, 2), x, [Against(0, 2)] * 2)
    functions = maps(network(), method, difference, x, [difference] * 2)
    for one, other in zip(pairs, functions, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max() + 1e-9)


@pytest.mark.parametrize("target", [Linear({"y": np.ones(3)}), Against(0, 1)])
def test_cam_needs_a_class(target: TargetSpec) -> None:
    with pytest.raises(UnsupportedError, match="`cam` weighs channels by a class, and the target is none"):
        Explainer(network(), method="cam", target=target, layer="a")
