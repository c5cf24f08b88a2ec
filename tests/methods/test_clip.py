"""Overlays of maps made pixel by pixel: the brightest hundredth shares the top colour; the values stay."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from test_identities import network

from onnxcam import Explainer
from onnxcam.cli import main
from onnxcam.errors import UsageError
from onnxcam.explanation import Explanation
from onnxcam.render import clipped, overlay

PICTURE = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def explained(method: str, **options: object) -> Explanation:
    return Explainer(network(1), method=method, threads=1, preprocess={"crop_pct": 1.0}, **options)(PICTURE, 1)


def test_values_are_divided_by_their_percentile_over_what_was_seen() -> None:
    values = np.zeros((4, 10), np.float32)
    values[1:3, 2:7] = np.arange(1, 11).reshape(2, 5) / 20  # 0.05 to 0.5; 0 where nothing was seen
    got = clipped(values, (2, 1, 7, 3), 50.0)
    expected = np.minimum(values / np.float32(0.275), 1)  # the median of what was seen
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(clipped(values, (2, 1, 7, 3), 100.0), values)


def test_a_map_with_fewer_positive_pixels_than_the_percentile_and_one_of_nan_stay() -> None:
    for lonely in (0.7, np.nan):
        values = np.zeros((20, 20), np.float32)
        values[3, 4] = lonely
        np.testing.assert_array_equal(clipped(values, (0, 0, 20, 20), 99.0), values)


@pytest.mark.parametrize(
    ("method", "clip"), [("saliency", 99), ("guidedgradcam", 99), ("gradcam", 100), ("eigencam", 100)]
)
def test_maps_of_pixels_are_drawn_from_their_99th_percentile_and_it_is_recorded(method: str, clip: float) -> None:
    explanation = explained(method)
    assert explanation.record()["clip"] == explanation.clip == clip
    values = explanation.values.copy()
    top = np.percentile(values, clip) if clip < 100 else 1.0
    drawn = overlay(PICTURE, np.minimum(values / np.float32(top), 1), explanation.region)
    np.testing.assert_array_equal(np.asarray(explanation.overlay()), np.asarray(drawn))
    np.testing.assert_array_equal(explanation.values, values)
    whole = np.asarray(explanation.overlay(clip=100))
    assert np.array_equal(whole, np.asarray(drawn)) == (clip == 100)


@pytest.mark.parametrize("clip", [0, -1, 100.5, float("nan")])
def test_a_percentile_that_is_none_is_refused(clip: float) -> None:
    with pytest.raises(UsageError, match=r"clip .* is outside \(0, 100\]"):
        explained("saliency").overlay(clip=clip)


def test_the_command_line_clips_at_the_percentile_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(1), "model.onnx")
    Image.fromarray(PICTURE).save("picture.png")
    command = ["explain", "model.onnx", "picture.png", "--method", "saliency", "--target", "1", "--crop-pct", "1",
               "--threads", "1", "-o", "out.png", "--json"]  # fmt: skip
    assert main([*command, "--clip", "60"]) == 0
    assert json.loads(capsys.readouterr().out)["clip"] == 99
    expected = np.asarray(explained("saliency").overlay(clip=60))
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), expected)
    Path("out.png").unlink()
    assert main([*command, "--clip", "0"]) == 2
    assert "clip 0.0 is outside (0, 100]" in capsys.readouterr().err and not Path("out.png").exists()
