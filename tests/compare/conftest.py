from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from shades import THREE, shades, square

from onnxcam.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models `a.onnx`, its copy `same.onnx`, `b.onnx`, which sees red as green and green as red,
    and four pictures with a red, green, blue and grey square."""
    monkeypatch.chdir(tmp_path)
    onnx.save(shades(THREE), "a.onnx")
    onnx.save(shades(THREE), "same.onnx")
    onnx.save(shades({"red": THREE["green"], "green": THREE["red"], "blue": THREE["blue"]}), "b.onnx")
    (tmp_path / "pictures").mkdir()
    named = {"red": (250, 40, 40), "green": (40, 250, 40), "blue": (40, 40, 250), "white": (190, 250, 245)}
    for name, colour in named.items():
        square(colour).save(f"pictures/{name}.png")
    return tmp_path


@pytest.fixture
def onnxcam(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(argv))
        except SystemExit as leave:  # argparse
            code = leave.code if isinstance(leave.code, int) else 1
        return code, *capsys.readouterr()

    return run
