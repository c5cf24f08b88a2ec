"""What the command line asks of a detector: which boxes, anchors in a file, a report of its layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.check import CheckReport, check
from onnxcam.detection.decode import Array
from onnxcam.detection.detector import Detector, class_terms, looks_like_detector, opened
from onnxcam.detection.neck import shared_map
from onnxcam.detection.recognise import KINDS, recognised
from onnxcam.detection.target import BoxTarget
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.explained import Size
from onnxcam.graph.read import ModelSource, read
from onnxcam.npy import read_npy
from onnxcam.picture import Picture
from onnxcam.targets import class_number


def anchors_from(path: str) -> Array:
    """(A, 4) float64 from a .npy file. Raises: UsageError where it is none, or holds something else."""
    if not Path(path).is_file():
        raise UsageError(f"anchors {path}: no such file", "give a .npy file")
    try:
        anchors = read_npy(path)
    except ValueError as error:
        raise UsageError(f"anchors {path}: not a .npy file: {error}", "write it with `numpy.save`") from error
    if anchors.ndim != 2 or anchors.shape[1] != 4 or anchors.dtype.kind not in "fiu":
        raise UsageError(
            f"anchors {path}: {anchors.dtype} of shape {list(anchors.shape)}",
            "give numbers of shape [A, 4]: centre x, centre y, width and height in pixels of the model's input",
        )
    return np.asarray(anchors, np.float64)


def checked(
    source: ModelSource, size: Size | None = None, input_layout: str | None = None, **inputs: Any
) -> tuple[str | None, CheckReport]:
    """What kind of detector a model is, in words, None of another model; and its layers, of a detector the one that
    serves all boxes first."""
    file = read(source)
    if looks_like_detector(file, size=size, input_layout=input_layout, **inputs):
        graph, image, bound = opened(file, size, input_layout, **inputs)
        try:
            found = recognised(graph, bound)
        except UnsupportedError:
            found = None
        if found is not None:
            terms = tuple(class_terms(graph, found.layout))
            layer = shared_map(graph, [term.value for term in terms], image.name, bound)
            target = BoxTarget(terms, found.layout.classes)
            report = check(file, size=bound, input_layout=input_layout, target=target, automatic=layer, **inputs)
            return f"{found.kind}: {KINDS[found.kind][1]}", report
    return None, check(file, size=size, input_layout=input_layout, **inputs)


def chosen_boxes(
    detector: Detector, picture: Picture, indices: Sequence[int] | None, target: str | None
) -> list[int] | None:
    """Indices of the boxes asked for: those given, those of a class, or None for all.

    Raises: UsageError for an unknown class, or one that no box is of.
    """
    if target is None:
        return list(indices) if indices is not None else None
    if indices is not None:
        raise UsageError("a box and a class", "give `--box` or `--target`")
    number = class_number(target, detector.labels, detector.classes)
    boxes = detector.detect(picture)
    wanted = [box.index for box in boxes if box.class_index == number]
    if not wanted:
        found = ", ".join(dict.fromkeys(box.name for box in boxes)) or "nothing"
        raise UsageError(f"no box is of class `{target}`: found {found}", "choose one of these, or lower --threshold")
    return wanted
