"""Real detectors on photographs with known boxes: what is found, and how much of each map lies in its box.

`python -m benchmarks.detectors` reads `shared/models` and `shared/images` beside the repository. Found: an object of
boxes.json that a box of its class covers with an overlap of more than 0.5. Energy: the share of a map's sum that lies
in the box that was explained. Left: of the box's score, when the pixels with the map's highest values, a tenth of the
box's area of them, are painted over with the mean colour; lower is better. `--all` compares methods and layers.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcam import Detector, Picture, load_picture
from onnxcam.detection import Box, BoxExplanation
from onnxcam.detection.nms import overlaps
from onnxcam.metrics.localisation import boxes_mask, energy_pointing_game, pointing_game

SHARED = Path(__file__).parents[2] / "shared"

# Files, what they find, and the layers that `--all` tries besides the automatic one: last maps of the backbone.
MODELS = {
    "yolox_nano_416.onnx": ("everything", ("841", "861")),
    "ultraface_rfb_320.onnx": ("face", ("283", "360")),
}
METHODS = ("gradcam", "hirescam", "layercam", "gradcamelementwise")


@dataclass(frozen=True)
class Row:
    """Sums over the pictures of one model: objects there and found, and of each box explained four numbers."""

    objects: int
    overlap: list[float]
    energy: list[float]
    peak: list[float]
    share: list[float]
    left: list[float]

    def text(self) -> str:
        """One line of numbers."""
        found = f"{len(self.overlap)}/{self.objects}"
        e = np.array(self.energy)
        return (
            f"found {found:>6}  IoU {np.mean(self.overlap):.2f}  energy {e.mean():.3f} (least {e.min():.3f}; "
            f">= 0.5: {(e >= 0.5).sum()}/{len(e)}; a flat map {np.mean(self.share):.3f})  "
            f"peak in box {np.mean(self.peak):.2f}  left {np.mean(self.left):.2f}"
        )


def objects(picture: str, detector: Detector) -> list[tuple[str, list[float]]]:
    """Label and box of the picture's objects that the detector knows."""
    known = json.loads((SHARED / "images" / "boxes.json").read_text())[picture]["objects"]
    return [(o["label"], o["box_xyxy"]) for o in known if o["label"] in (detector.labels or ())]


def matched(label: str, edges: Sequence[float], boxes: Sequence[Box]) -> tuple[Box, float] | None:
    """The best box of a label that overlaps an object by more than 0.5, and by how much."""
    for box in boxes:
        overlap = float(overlaps(np.array(edges, float), np.array([box.xyxy]))[0])
        if box.label == label and overlap > 0.5:
            return box, overlap
    return None


def left(detector: Detector, picture: Picture, explanation: BoxExplanation) -> float:
    """Of the score of a box, what is left without a tenth of its area, where the map is highest."""
    (box,) = explanation.boxes
    mask = boxes_mask(box.xyxy, explanation.values.shape)
    count = max(1, int(mask.sum() / 10))
    highest = np.argsort(-explanation.values.ravel(), kind="stable")[:count]
    painted = picture.rgb.copy()
    painted.reshape(-1, 3)[highest] = painted.reshape(-1, 3).mean(0)
    again = matched(box.name, box.xyxy, detector.detect(painted))
    return again[0].score / box.score if again else 0.0


def row(detector: Detector, painted: bool = True) -> Row:
    """What a detector finds on all pictures, and where its maps lie; painted: what is left without the highest."""
    result = Row(0, [], [], [], [], [])
    total = 0
    for path in sorted((SHARED / "images").iterdir()):
        if path.suffix not in (".jpg", ".png", ".bmp") or "mask" in path.name:
            continue
        there = objects(path.name, detector)
        total += len(there)
        if not there:
            continue
        picture = load_picture(path)
        boxes = detector.detect(picture)
        hits = [hit for o in there if (hit := matched(*o, boxes)) is not None]
        if not hits:
            continue
        result.overlap.extend(overlap for _, overlap in hits)
        for explanation in detector.explain_boxes(picture, [box.index for box, _ in hits]):
            mask = boxes_mask(explanation.boxes[0].xyxy, explanation.values.shape)
            result.energy.append(float(np.nan_to_num(energy_pointing_game(explanation.values, mask))))
            result.peak.append(pointing_game(explanation.values, mask))
            result.share.append(float(mask.mean()))
            if painted:
                result.left.append(left(detector, picture, explanation))
    return Row(total, *(getattr(result, name) for name in ("overlap", "energy", "peak", "share", "left")))


def main(arguments: Sequence[str]) -> None:
    """Print a line per model, or per model, layer and method."""
    for file, (_, layers) in MODELS.items():
        path = SHARED / "models" / file
        if not path.is_file():
            print(f"{file}: not there")
            continue
        for layer in (None, *layers) if "--all" in arguments else (None,):
            for method in METHODS if "--all" in arguments else ("layercam",):
                detector = Detector(path, layer=layer, method=method, threads=1)
                print(f"{file}  {method} at {detector.explainer.layer}: {row(detector).text()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
