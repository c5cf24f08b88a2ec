"""Signals and volumes drawn, and on the command line."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from test_signals_and_volumes import SIGNAL, network

from onnxcam import Explainer
from onnxcam.cli import main
from onnxcam.render import colormap, overlay
from onnxcam.sheet import Panel, Row, sheet
from onnxcam.strip import HEIGHT, WIDTH, drawn

VOLUME = network("N,2,6,8,10", (3, 1, 3), (1, 2, 1), (2, 1, 2))


def test_a_curve_is_drawn_over_the_colours_of_the_map() -> None:
    """Two channels of three samples; column 150 is the middle of the first, 450 of the second, 750 of the third."""
    x, values = np.array([[0.0, 1, 0], [5, 5, 5]]), np.array([0.0, 1, 2], np.float32)
    page = np.asarray(drawn(x, values, opacity=0.5))
    assert page.shape == (2 * HEIGHT, WIDTH, 3)
    jet = colormap("jet").astype(float)
    for column, level in ((150, 0), (450, 128), (750, 255)):
        np.testing.assert_allclose(page[HEIGHT // 2 + 20, column], jet[level] / 2 + 127.5, atol=1)
    black = page[:HEIGHT].sum(axis=2) == 0
    heights = {column: np.flatnonzero(black[:, column]).mean() for column in (150, 300, 450, 749)}
    for column, y in {150: HEIGHT - 6, 300: HEIGHT / 2, 450: 6, 749: HEIGHT - 6}.items():
        assert heights[column] == pytest.approx(y, abs=1.5)


def test_many_channels_are_drawn_as_rows_of_grey() -> None:
    x, values = np.zeros((20, 4)), np.zeros(4, np.float32)
    x[3, 2] = 1
    page = np.asarray(drawn(x, values, colors="gray", opacity=0.0))
    bright = np.argwhere(page[..., 0] == 255)
    rows = len(page) // 20
    assert bright.min(0).tolist() == [3 * rows, WIDTH // 2] and bright.max(0).tolist() == [
        4 * rows - 1,
        3 * WIDTH // 4 - 1,
    ]
    assert (page == 255).sum() == 3 * rows * WIDTH // 4


def test_slices_of_a_volume_lie_side_by_side() -> None:
    rng = np.random.default_rng(0)
    x, values = rng.normal(size=(2, 6, 8, 10)), rng.uniform(0, 1, (6, 8, 10)).astype(np.float32)
    values[0] *= 0.5
    values /= values.max()
    mean = x.mean(0)
    grey = np.rint((mean - mean.min()) / np.ptp(mean) * 255).astype(np.uint8)
    panels = [
        Panel(overlay(np.stack([g] * 3, 2), v, (0, 0, 10, 8)), (f"slice {i}, up to {v.max():.2f}",))
        for i, (g, v) in enumerate(zip(grey, values, strict=True))
    ]
    wanted = sheet([""] * 4, [Row("", panels[:4]), Row("", panels[4:])])
    assert np.array_equal(np.asarray(drawn(x, values)), np.asarray(wanted))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(SIGNAL, "signal.onnx")
    onnx.save(VOLUME, "volume.onnx")
    rng = np.random.default_rng(1)
    np.save("signal.npy", rng.normal(size=(2, 40)))
    np.save("volume.npy", rng.normal(size=(1, 2, 6, 8, 10)).astype(np.float32))
    return tmp_path


def explain(*words: str) -> int:
    return main(["explain", *words])


@pytest.mark.parametrize(("name", "size"), [("signal", (WIDTH, 2 * HEIGHT)), ("volume", None)])
def test_explain_takes_an_array(name: str, size: tuple[int, int] | None, folder: Path) -> None:
    assert explain(f"{name}.onnx", f"{name}.npy", "-o", "map.npy", "--target", "2") == 0
    x = np.load(f"{name}.npy").astype(np.float32)
    (wanted,) = Explainer(f"{name}.onnx", threads=1).explain_tensor(x if name == "volume" else x[None], 2)
    np.testing.assert_allclose(np.load("map.npy"), wanted.values, atol=1e-5)
    assert explain(f"{name}.onnx", f"{name}.npy", "-o", "map.json") == 0
    assert json.loads(Path("map.json").read_text())["size"] == list(wanted.values.shape)
    assert explain(f"{name}.onnx", f"{name}.npy") == 0
    with Image.open(f"{name}.cam.png") as page:
        assert size is None or page.size == size
        assert np.asarray(page).std() > 5


def test_arrays_that_do_not_fit_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("two.npy", np.zeros((2, 2, 40), np.float32))
    np.save("words.npy", np.array(["a"]))
    Path("no.npy").write_bytes(os.urandom(8))
    demo = Path(__file__).parents[2] / "models" / "demo.onnx"
    for model, array, code, said in (
        ("signal.onnx", "two.npy", 2, "two.npy holds 2 samples"),
        ("signal.onnx", "volume.npy", 2, "`x` takes float32 (N, 2, 40), not float32 (1, 2, 6, 8, 10)"),
        ("signal.onnx", "words.npy", 5, "words.npy: holds no array of numbers"),
        ("signal.onnx", "no.npy", 5, "no.npy: cannot be read as an array"),
        ("signal.onnx", "missing.npy", 5, "missing.npy: cannot be read as an array"),
        (str(demo), "signal.npy", 2, "signal.npy is an array, and the model takes pictures"),
    ):
        assert explain(model, array) == code
        assert said in capsys.readouterr().err
