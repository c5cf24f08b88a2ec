"""Writes torchvision_goldens.npz: what torchvision does to small pictures, for test_preprocess.py. Needs torchvision.

python tests/preprocess/make_goldens.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Grayscale, Normalize, Resize, ToTensor, functional

SIZES = ((48, 64), (64, 48), (37, 53), (120, 41), (7, 9), (36, 36), (33, 200), (1, 1))
RESIZE, CROP = 36, 31


def main(path: Path) -> None:
    rng = np.random.default_rng(0)
    goldens = {}
    for i, (H0, W0) in enumerate(SIZES):
        y, x = np.mgrid[:H0, :W0][..., np.newaxis]
        waves = 127 + 100 * np.sin(y / (3, 5, 7) + x / (4, 2, 9))
        picture = np.clip(waves + rng.normal(0, 20, (H0, W0, 3)), 0, 255).astype(np.uint8)
        crop = Compose([Resize(RESIZE), CenterCrop(CROP)])
        goldens[f"picture_{i}"] = picture
        goldens[f"crop_{i}"] = np.array(crop(Image.fromarray(picture)))
        goldens[f"gray_{i}"] = np.array(Compose([Grayscale(), crop])(Image.fromarray(picture)))
        goldens[f"squash_{i}"] = np.array(Resize((20, 27))(Image.fromarray(picture)))
        goldens[f"imagenet_{i}"] = Compose([crop, ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(
            Image.fromarray(picture)
        ).numpy()
    rows = []
    for _ in range(300):
        H0, W0 = (int(n) for n in rng.integers(1, 700, 2))
        crop_size = int(rng.integers(8, 300))
        resize = crop_size + int(rng.integers(0, 60))
        if resize * max(H0, W0) / min(H0, W0) > 5000:
            continue
        resized = functional.resize(torch.zeros(1, H0, W0), [resize])
        h, w = resized.shape[1:]
        corner = int(functional.center_crop(torch.arange(h * w).reshape(1, h, w), [crop_size])[0, 0, 0])
        rows.append((H0, W0, resize, crop_size, h, w, corner // w, corner % w))
    goldens["geometry"] = np.array(rows, np.int32)
    np.savez_compressed(path, **goldens)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("torchvision_goldens.npz"))
