"""Smooth Grad-CAM++ against its formula, on gradients of noisy pictures drawn again."""

import numpy as np
import pytest
from onnx import parser
from test_identities import maps, network, pictures

from onnxcam import Explainer, rewrite
from onnxcam.errors import UnsupportedError
from onnxcam.runtime import Session

TAIL = "d = Tanh(a) p = GlobalAveragePool(d)"  # so that gradients vary over space


def by_the_paper(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The map (h, w) of clean activations (K, h, w) and gradients (n, K, h, w) on noisy pictures, cell by cell."""
    first, second, third = (np.mean(g.astype(np.float64) ** p, axis=0) for p in (1, 2, 3))
    k, h, w = a.shape
    found = np.zeros((h, w))
    for channel in range(k):
        total = a[channel].astype(np.float64).sum()
        weight = 0.0
        for i in range(h):
            for j in range(w):
                below = 2 * second[channel, i, j] + total * third[channel, i, j] + 1e-6
                weight += second[channel, i, j] / below * max(0.0, first[channel, i, j])
        found += weight * a[channel]
    return found


@pytest.mark.parametrize("layers", [["a"], ["i", "a"]])
def test_smooth_gradcam_plus_plus_is_the_papers_formula_on_clean_activations(layers: list[str]) -> None:
    model, x = network(6, TAIL), pictures(6, 2)
    options = {"samples": 5, "std": 0.1}
    found = maps(model, x, [1, 3], method="smoothgradcam++", method_options=options, seed=4, batch_size=2, layer=layers)
    for position, layer in enumerate(layers):
        session = Session(rewrite(model, layer=layer, method="hirescam"), threads=1)
        for sample, target, explanation in zip(x, (1, 3), found, strict=True):
            rng = np.random.default_rng(4)
            std = np.float32(0.1) * np.float32(np.ptp(sample))
            noisy = np.stack([sample + std * rng.standard_normal(sample.shape, np.float32) for _ in range(5)])
            index = np.array([target])
            a = session.run({"x": sample[np.newaxis], "class_index": index})["onnxcam_activations"][0]
            g = session.run({"x": noisy, "class_index": index})["onnxcam_alpha"]
            expected = by_the_paper(a, g)
            np.testing.assert_allclose(explanation.raws[position], expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_without_noise_it_is_gradcam_plus_plus() -> None:
    model, x = network(6, TAIL), pictures(6, 2)
    plain = maps(model, x, [1, 3], method="gradcam++", layer="a")
    still = maps(model, x, [1, 3], method="smoothgradcam++", method_options={"std": 0}, layer="a")
    for p, s in zip(plain, still, strict=True):
        np.testing.assert_allclose(s.raw, p.raw, rtol=1e-4, atol=1e-6 * p.raw.max())


def test_the_seed_decides_the_noise() -> None:
    runs = [
        maps(network(6, TAIL), pictures(6), 1, method="smoothgradcam++", seed=s, layer="a")[0].raw for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-4 * runs[0].max()


def test_pixels_that_are_integers_take_no_noise() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        quantized (uint8[N,1,4,4] x) => (float[N,2] z)
        <float scale = {0.5}, uint8 zero = {100}, float[2,1,1,1] w = {2, 1}>
        { m = DequantizeLinear(x, scale, zero) a = Conv(m, w) p = GlobalAveragePool(a) z = Flatten(p) }""")
    with pytest.raises(UnsupportedError, match="holds integers: there is no noise to add") as error:
        Explainer(model, method="smoothgradcam++")
    assert error.value.hint.startswith("use `gradcam++`; methods that work here: gradcam")
