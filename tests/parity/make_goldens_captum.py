"""Writes goldens_more/captum.npz: needs PyTorch and Captum.

    pip install --no-deps captum==0.9.0
    python make_goldens_captum.py

Maps (N, H, W) float32 of the explicit classes on x of goldens/: attributions summed over channels where the gradient is
multiplied by x, else the largest magnitude, as onnxcam reduces them. Integrated gradients with 20 Gauss-Legendre points
and a baseline of 0. Captum's guided backpropagation and Deconvnet replace the gradient of `nn.ReLU` modules only, so
they are there for the networks whose every activation is one.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from captum.attr import Deconvolution, GuidedBackprop, InputXGradient, IntegratedGradients, Saliency
from networks import build, picture

HERE = Path(__file__).parent
NETWORKS = json.loads((HERE / "goldens" / "goldens.json").read_text())["networks"]
GRADIENTS = ("plain", "residual", "depthwise", "branches", "smooth")
RELU_ONLY = ("plain", "residual", "branches")
STEPS = 20


def attributions(name: str) -> dict[str, np.ndarray]:
    target = NETWORKS[name]["classes"]["explicit"]
    found = {
        "saliency": Saliency(build(name)).attribute(picture(name), target),
        "inputxgradient": InputXGradient(build(name)).attribute(picture(name), target),
        "integratedgradients": IntegratedGradients(build(name)).attribute(
            picture(name), target=target, n_steps=STEPS, method="gausslegendre"
        ),
    }
    if name in RELU_ONLY:
        found["guidedbackprop"] = GuidedBackprop(build(name)).attribute(picture(name), target)
        found["deconvnet"] = Deconvolution(build(name)).attribute(picture(name), target)
    return {f"{name}.{method}": a.detach().numpy().astype(np.float32) for method, a in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arrays = {key: array for name in GRADIENTS for key, array in attributions(name).items()}
    summed = ("inputxgradient", "integratedgradients")
    maps = {k: a.sum(axis=1) if k.endswith(summed) else np.abs(a).max(axis=1) for k, a in arrays.items()}
    np.savez_compressed(HERE / "goldens_more" / "captum.npz", **maps)
    print({k: a.shape for k, a in maps.items()})
