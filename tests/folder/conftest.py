from pathlib import Path

import numpy as np
import pytest
from kill import MODEL
from PIL import Image

from onnxcam.demo import PICTURES
from onnxcam.explainer import Explainer


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    return Explainer(MODEL, threads=1)


@pytest.fixture(scope="session")
def pixels() -> list[np.ndarray]:
    """Six small pictures (60, 80, 3), no two alike."""
    sources = [np.asarray(Image.open(p).convert("RGB").resize((80, 60))) for p in sorted(PICTURES.glob("*.jpg"))]
    return [np.roll(sources[i % len(sources)], 7 * i, 1) for i in range(6)]


@pytest.fixture
def pictures(tmp_path: Path, pixels: list[np.ndarray]) -> Path:
    """A folder of six pictures: a.png to f.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for letter, one in zip("abcdef", pixels, strict=True):
        Image.fromarray(one).save(folder / f"{letter}.png")
    return folder
