"""Writes goldens_more/torchcam.npz and legrad.npz: needs PyTorch and TorchCAM.

    pip install --no-deps torchcam==0.5.0
    python make_goldens_torchcam.py

What TorchCAM alone has, deterministic and right: CAM, un-normalised (`residual`, the network with the head that it
needs), and RefineCAM at the picture's size (`plain`, two layers). Its Grad-CAM++ and Smooth Grad-CAM++ do not compute
what they document, SS-CAM draws unseeded and IS-CAM over-exposes, its Finer-CAM is another score, its LeGrad scores
every block by itself (see docs/methods.md). legrad.npz is autograd's, without TorchCAM: the gradient (N, heads, T, T)
of the class logits with respect to every block's attention map.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from networks import build, picture
from torch.nn import functional
from torchcam.methods import CAM, GradCAM, LayerCAM, RefineCAM

HERE = Path(__file__).parent
NETWORKS = json.loads((HERE / "goldens" / "goldens.json").read_text())["networks"]


def torchcam() -> dict[str, np.ndarray]:
    found = {}
    x, classes = picture("residual"), NETWORKS["residual"]["classes"]["explicit"]
    model = build("residual")
    with CAM(model, "block3", fc_layer="fc", input_shape=tuple(x.shape[1:])) as cam:
        model(x)
        found["residual.cam"] = cam(classes, normalized=False)[0].detach().numpy()
    x, classes = picture("plain"), NETWORKS["plain"]["classes"]["explicit"]
    for name, base in (("gradcam", GradCAM), ("layercam", LayerCAM)):
        model = build("plain")
        layers = [NETWORKS["plain"]["layers"][where]["module"] for where in ("middle", "last")]
        with RefineCAM(model, layers, tuple(x.shape[1:]), base_method=base) as cam:
            scores = model(x)
            found[f"plain.refinecam.{name}"] = cam(classes, scores, target_shape=tuple(x.shape[2:]))[0].detach().numpy()
    return found


def legrad(name: str) -> dict[str, np.ndarray]:
    """d sum of class logits / d attention, in float64, by keeping what every softmax over the last axis returned."""
    model, x = build(name).double(), picture(name).double()
    classes = NETWORKS[name]["classes"]["explicit"]
    held: list[torch.Tensor] = []
    plain = torch.Tensor.softmax

    def softmax(self: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        held.append(plain(self, *args, **options))
        held[-1].retain_grad()
        return held[-1]

    def spelt_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v

    fused = mock.patch.object(functional, "scaled_dot_product_attention", spelt_out)
    torch.backends.mha.set_fastpath_enabled(False)
    with mock.patch.object(torch.Tensor, "softmax", softmax), fused:
        logits = model(x.requires_grad_())
    logits[torch.arange(len(x)), classes].sum().backward()
    return {f"{name}.{i}": a.grad.numpy().astype(np.float32) for i, a in enumerate(held)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = HERE / "goldens_more"
    np.savez_compressed(out / "torchcam.npz", **torchcam())
    np.savez_compressed(out / "legrad.npz", **legrad("vit"), **legrad("hybrid"))
    for file in ("torchcam.npz", "legrad.npz"):
        with np.load(out / file) as stored:
            print(file, {k: (v.shape, v.dtype.name) for k, v in stored.items()})
