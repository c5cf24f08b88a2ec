from pathlib import Path

import onnx
import pytest
from squares import colours, square


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `colours.onnx`, and pictures 00.png .. 11.png with a red, green or blue square in turn."""
    monkeypatch.chdir(tmp_path)
    onnx.save(colours(), "colours.onnx")
    for i in range(12):
        colour = [40, 40, 40]
        colour[i % 3] = 250 - 5 * i
        square((colour[0], colour[1], colour[2]), (24 + i, 16 + i)).save(f"{i:02}.png")
    return tmp_path
