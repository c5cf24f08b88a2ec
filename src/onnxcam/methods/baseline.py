"""Baselines: maps that know nothing of the model's reasons, which every method has to beat."""

import numpy as np

from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.registry import looped


@looped(
    "random",
    formula="alpha_k uniform in [-1, 1)",
    paper="pytorch-grad-cam, RandomCAM",
    passes="1",
    class_discriminative=False,
)
def random(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1): random weights, seeded by the explainer's `seed`; the same for every sample."""
    return [
        np.broadcast_to(loop.random().uniform(-1, 1, (1, a.shape[1], 1, 1)), (*a.shape[:2], 1, 1)).astype(np.float32)
        for a in loop.activations
    ]


@looped(
    "sobel",
    planar=True,
    formula="M = (|dx/dh| + |dx/dw|) / 2 of the channel mean, 3 x 3 Sobel filter",
    paper="pytorch-grad-cam, sobel_cam",
    passes="1",
    combine="none",
    class_discriminative=False,
    at_input=True,
)
def sobel(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W): edges of the model's own input; the peer's are of the gray picture in 8 bits."""
    gray = np.pad(loop.activations[0].mean(axis=1), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    smooth_down = gray[:, :-2] + 2 * gray[:, 1:-1] + gray[:, 2:]
    smooth_right = gray[:, :, :-2] + 2 * gray[:, :, 1:-1] + gray[:, :, 2:]
    across = np.abs(smooth_down[:, :, 2:] - smooth_down[:, :, :-2])
    down = np.abs(smooth_right[:, 2:] - smooth_right[:, :-2])
    return [((across + down) / 2).astype(np.float32)]
