"""What models and pictures from elsewhere may make us do ends at limits that are stated and can be raised."""

from pathlib import Path

import pytest
from kill import MODEL

from onnxcam.errors import ModelError, UsageError
from onnxcam.explainer import Explainer


def test_maps_made_at_once_have_a_limit(explainer: Explainer, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcam.saliency.MAX_CELLS", 3 * 60 * 80)
    assert len(explainer.explain_classes(pictures / "a.png", 3)) == 3
    with pytest.raises(UsageError, match="4 maps hold 19,200 values at once, more than 14,400"):
        explainer.explain_classes(pictures / "a.png", 4)


def test_classes_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcam.graph.head.MAX_CLASSES", 10)
    assert Explainer(MODEL).classes == 10
    monkeypatch.setattr("onnxcam.graph.head.MAX_CLASSES", 9)
    with pytest.raises(ModelError, match="holds 10 scores, more than 9 classes"):
        Explainer(MODEL)
