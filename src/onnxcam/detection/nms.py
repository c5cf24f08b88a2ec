"""Non-maximum suppression on the host: of boxes that overlap, the best."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def overlaps(box: Floats, boxes: Floats) -> Floats:
    """Intersection over union of one box (4,) with boxes (B, 4), x0, y0, x1, y1; 0 where both are empty."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(len(boxes)), where=union > 0))


def suppressed(boxes: Floats, scores: Floats, labels: npt.NDArray[np.int64], iou: float) -> npt.NDArray[np.int64]:
    """Indices of the boxes that stay, best score first: each class keeps a box unless a better one of the same class
    overlaps it by more than `iou`. Equal scores keep their order."""
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(int(best))
        rival = (labels[rest] == labels[best]) & (overlaps(boxes[best], boxes[rest]) > iou)
        left = rest[~rival]
    return np.array(kept, np.int64)
