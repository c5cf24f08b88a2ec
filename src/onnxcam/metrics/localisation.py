"""Localisation: does the map lie on the object? Maps (H, W) >= 0 against the object's pixels (H, W), bool."""

import numpy as np
import numpy.typing as npt

from onnxcam.metrics.faithfulness import Array

Mask = npt.NDArray[np.bool_]


def boxes_mask(boxes: npt.ArrayLike, size: tuple[int, int]) -> Mask:
    """(H, W) bool: the pixels whose centre lies in one of the boxes (B, 4), x0, y0, x1, y1, end-exclusive."""
    height, width = size
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    mask = np.zeros(size, bool)
    for x0, y0, x1, y1 in np.asarray(boxes, np.float64).reshape(-1, 4):
        mask |= (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    return mask


def pointing_game(saliency: Array, mask: Mask) -> float:
    """1 where a pixel with the map's highest value lies on the object, else 0.

    Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016; any of several equal peaks counts, as
    in openvino_xai, and no margin of 15 pixels is granted.
    """
    return float(mask[saliency == saliency.max()].any())


def energy_pointing_game(saliency: Array, mask: Mask) -> float:
    """The share of the map's sum that lies on the object, in [0, 1]; NaN for an empty map.

    Wang et al., Score-CAM, CVPRW 2020, with boxes; Arras et al., CLEVR-XAI, Information Fusion 2022, call it relevance
    mass accuracy, with masks.
    """
    total = saliency.sum(dtype=np.float64)
    return float(saliency[mask].sum(dtype=np.float64) / total) if total > 0 else float("nan")


relevance_mass_accuracy = energy_pointing_game


def relevance_rank_accuracy(saliency: Array, mask: Mask) -> float:
    """Of the K highest pixels, K the object's size, the share that lies on it, in [0, 1]; NaN without an object.

    Arras et al., CLEVR-XAI, Information Fusion 2022. Pixels tied at the K-th value count with the share of them that
    K still has room for, so that a flat map scores the object's share of the picture wherever the object is.
    """
    size = int(mask.sum())
    if size == 0:
        return float("nan")
    threshold = np.partition(saliency.ravel(), saliency.size - size)[saliency.size - size]
    above, tied = saliency > threshold, saliency == threshold
    room = (size - above.sum()) / tied.sum()
    return float(((above & mask).sum() + room * (tied & mask).sum()) / size)


def iou(saliency: Array, mask: Mask, threshold: float = 0.5) -> float:
    """Intersection over union of the object with the pixels at or above `threshold` times the highest value.

    In [0, 1]; NaN for an empty map. Boxes of the largest component (CAM, CVPR 2016) are not drawn: pixels count.
    """
    peak = saliency.max()
    if not peak > 0:
        return float("nan")
    shown = saliency >= threshold * peak
    return float((shown & mask).sum() / (shown | mask).sum())
