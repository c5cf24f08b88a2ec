import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from colours import COLOURS, Result, described, listing
from PIL import Image

from onnxcam.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `colours.onnx` and `dog.png`, 40x30 and green but for a red square at x 24..31, y 6..11."""
    monkeypatch.chdir(tmp_path)
    onnx.save(described(COLOURS), "colours.onnx")
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[..., 1] = 255
    pixels[6:12, 24:32] = (255, 0, 0)
    Image.fromarray(pixels).save("dog.png")
    return tmp_path


@pytest.fixture
def onnxcam(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process."""

    def run(*argv: str | os.PathLike[str]) -> Result:
        capsys.readouterr()
        try:
            code = main([os.fspath(a) for a in argv])
        except SystemExit as leave:  # argparse
            code = leave.code if isinstance(leave.code, int) else 1
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def refused(folder: Path, onnxcam: Callable[..., Result]) -> Callable[..., Result]:
    """Runs a command that must fail by design: its code, nothing on stdout, `error:` and `hint:`, nothing written."""

    def run(argv: Sequence[str | os.PathLike[str]], code: int, message: str, hint: str) -> Result:
        before = listing(folder)
        result = onnxcam(*argv)
        assert listing(folder) == before
        assert (result.code, result.out) == (code, ""), result.err
        error, _, advice = result.err.partition("\n\nhint: ")
        assert error.startswith("error: ") and "Traceback" not in result.err
        assert message in error
        assert hint in advice and advice.strip()
        return result

    return run
