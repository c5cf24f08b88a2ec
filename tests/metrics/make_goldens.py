"""Writes goldens.npz: what pytorch-grad-cam's metrics say of two small maps under a linear softmax model.

    python tests/metrics/make_goldens.py

Development only: needs torch and grad-cam 1.5.7. ROAD's noise, which it draws unseeded, is switched off.
"""

from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam.metrics import road
from pytorch_grad_cam.metrics.arcc import ARCC
from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange, DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

SIZE = (3, 12, 17)
CLASSES = 4
PERCENTILES = [20, 40, 60, 80]

road.NoisyLinearImputer.__init__.__defaults__ = (0.0, road.neighbors_weights)

rng = np.random.default_rng(7)
x = rng.normal(size=(2, *SIZE)).astype(np.float32)
weights = (0.08 * rng.normal(size=(CLASSES, int(np.prod(SIZE))))).astype(np.float32)
y, column = np.mgrid[: SIZE[1], : SIZE[2]]
bump = np.exp(-((y - 4.3) ** 2 + (column - 10.2) ** 2) / 20)
cams = np.stack([bump, rng.random(SIZE[1:])]).astype(np.float32)
# The first map is right about the class it explains, the second is not: ROAD and the change take both signs.
weights[1] += 0.02 * (x[0] * (4 * bump - 1)).ravel()
weights[3] += 0.02 * (x[1] * (1 - bump)).ravel()
again = np.stack([bump + 0.3 * rng.random(SIZE[1:]), rng.random(SIZE[1:])]).astype(np.float32)

model = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(weights.shape[1], CLASSES, bias=False), torch.nn.Softmax(1)
)
model[1].weight.data = torch.from_numpy(weights)
targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
arguments = (torch.from_numpy(x), cams, targets, model)

np.savez(
    Path(__file__).with_name("goldens.npz"),
    x=x,
    weights=weights,
    cams=cams,
    again=again,
    classes=[1, 3],
    percentiles=PERCENTILES,
    change=CamMultImageConfidenceChange()(*arguments),
    drop=DropInConfidence()(*arguments),
    increase=IncreaseInConfidence()(*arguments),
    morf=[road.ROADMostRelevantFirst(p)(*arguments) for p in PERCENTILES],
    lerf=[road.ROADLeastRelevantFirst(p)(*arguments) for p in PERCENTILES],
    combined=road.ROADCombined(PERCENTILES)(*arguments),
    arcc=ARCC(lambda input_tensor, targets: again, PERCENTILES)(*arguments),
)
