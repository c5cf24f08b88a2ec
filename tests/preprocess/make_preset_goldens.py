"""Writes preset_goldens.npz: what transformers, timm, torchvision and OpenCV make of the pictures that it draws.

python tests/preprocess/make_preset_goldens.py

Needs transformers (with torchvision), timm, torchvision and opencv-python. The test imports `pictures` and the
configurations from here, and needs none of them.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STRIDE = 17
"""Every STRIDE-th row and column of a tensor is kept."""


def pictures() -> dict[str, npt.NDArray[np.uint8]]:
    """Three pictures (H, W, 3) with waves, sharp edges and noise, between 12 and 244.

    Where bicubic overshoots black or white, transformers' two backends differ by several levels, since they clip in
    another order; onnxcam is equal to the one on Pillow there too.
    """
    drawn = {}
    for name, (H, W) in {"wide": (299, 401), "tall": (427, 320), "wider": (375, 611)}.items():
        y, x, c = np.mgrid[:H, :W, :3]
        waves = 128 + 70 * np.sin(y / (7 + 4 * c) + x / (11 - 3 * c))
        edges = np.where((y // 17 + x // 23) % 2, 30, -30)
        noise = (y * 7919 + x * 104729 + c * 1299709) * 2654435761 % 4294967296 >> 27
        drawn[name] = (np.rint(waves).astype(np.int64) + edges + noise - 16).astype(np.uint8)
    return drawn


HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
DO = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
SQUARE_224 = {"height": 224, "width": 224}

# preprocessor_config.json as published for each family, old forms and new.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": SQUARE_224, "resample": 2, **DO, **HALF},
    "vit_old": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "size": 224,
        "resample": 2,
        **HALF,
    },
    "swin": {"image_processor_type": "ViTImageProcessor", "size": SQUARE_224, "resample": 3, **DO, **IMAGENET},
    "deit": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 256, "width": 256},
        "crop_size": SQUARE_224,
        "do_center_crop": True,
        "resample": 3,
        **DO,
        **IMAGENET,
    },
    "convnext_224": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        **DO,
        **IMAGENET,
    },
    "convnext_384": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 384},
        "crop_pct": 0.875,
        "resample": 3,
        **DO,
        **IMAGENET,
    },
    "resnet": {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "crop_pct": 0.95,
        "do_normalize": True,
        "do_resize": True,
        "size": 224,
        "resample": 3,
        **IMAGENET,
    },
    "clip": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "size": 224,
        **CLIP,
    },
    "mobilenet_v2": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": SQUARE_224,
        "do_center_crop": True,
        "resample": 2,
        **DO,
        **HALF,
    },
    "efficientnet": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 256, "width": 240},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "include_top": True,
        "resample": 3,
        "rescale_offset": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.47853944, 0.4732864, 0.47434163],
        **DO,
    },
    "efficientnet_offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 240, "width": 240},
        "do_center_crop": False,
        "include_top": False,
        "resample": 2,
        "rescale_offset": True,
        **DO,
        **HALF,
        "rescale_factor": 1 / 127.5,
    },
    "beit": {
        "feature_extractor_type": "BeitFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": 256,
        **HALF,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": SQUARE_224,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "resample": 3,
        **DO,
        **IMAGENET,
    },
    "dinov3": {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": SQUARE_224,
        "resample": 2,
        **DO,
        **IMAGENET,
    },
    "levit": {
        "feature_extractor_type": "LevitFeatureExtractor",
        "size": 224,
        "crop_size": 224,
        "do_center_crop": True,
        "do_resize": True,
        "do_normalize": True,
        "resample": 3,
        **IMAGENET,
    },
    "poolformer": {
        "feature_extractor_type": "PoolFormerFeatureExtractor",
        "size": 224,
        "crop_size": 224,
        "crop_pct": 0.9,
        "do_resize_and_center_crop": True,
        "do_normalize": True,
        "resample": 3,
        **IMAGENET,
    },
    "mobilevit": {
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "do_resize": True,
        "resample": 2,
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE_224, "resample": 3, **DO, **HALF},
    "lanczos": {"image_processor_type": "ViTImageProcessor", "size": SQUARE_224, "resample": 1, **DO, **HALF},
    "not_normalised": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 160, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    },
    "small_before_crop": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 200},
        "crop_size": SQUARE_224,
        "do_center_crop": True,
        "resample": 3,
        **DO,
        **CLIP,
    },
}


def _cfg(size: list[int], interpolation: str, crop_pct: float, mode: str | None = None) -> dict[str, Any]:
    config = {
        "input_size": size,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    return config if mode is None else config | {"crop_mode": mode}


TIMM: dict[str, dict[str, Any]] = {
    "center": _cfg([3, 224, 224], "bicubic", 0.9, "center"),
    "center_bilinear": _cfg([3, 224, 224], "bilinear", 0.875),
    "center_whole": _cfg([3, 240, 240], "bicubic", 1.0, "center"),
    "oblong": _cfg([3, 160, 256], "bicubic", 0.95, "center"),
    "squash": _cfg([3, 224, 224], "bicubic", 1.0, "squash"),
    "squash_cropped": _cfg([3, 224, 224], "bicubic", 0.94, "squash"),
    "border": _cfg([3, 224, 224], "bicubic", 1.0, "border"),
    "border_cropped": _cfg([3, 224, 224], "bilinear", 0.9, "border"),
    "nothing_but_the_size": {"input_size": [3, 224, 224]},
}


def _levels(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(values[:, ::STRIDE, ::STRIDE]).astype(np.float16)


def _transformers(config: dict[str, Any], backend: str) -> Any:
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
        return AutoImageProcessor.from_pretrained(folder, backend=backend)


def _weights() -> dict[str, Any]:
    import torchvision
    from torchvision.models import get_model_weights, list_models

    presets = {}
    for name in list_models(module=torchvision.models):
        for weights in get_model_weights(name):
            t = weights.transforms()
            presets[f"{name}.{weights.name}"] = {
                "resize": t.resize_size[0],
                "size": t.crop_size[0],
                "resample": t.interpolation.value,
                "mean": t.mean,
                "std": t.std,
                "default": weights is get_model_weights(name).DEFAULT,
            }
    return presets


def main() -> None:
    import cv2
    import timm.data
    import torch
    from PIL import Image
    from torchvision.models import EfficientNet_B1_Weights, ResNet50_Weights

    torch.set_num_threads(1)
    goldens: dict[str, npt.NDArray[Any]] = {}
    for shape, rgb in pictures().items():
        image = Image.fromarray(rgb)
        for name, config in TRANSFORMERS.items():
            for backend in ("torchvision", "pil") if name != "dinov3" else ("torchvision",):
                tensor = _transformers(config, backend)(image, return_tensors="np")["pixel_values"][0]
                goldens[f"transformers_{backend}_{name}_{shape}"] = _levels(np.asarray(tensor))
        for name, config in TIMM.items():
            data = timm.data.resolve_data_config(pretrained_cfg=config)
            tensor = timm.data.create_transform(**data, is_training=False)(image)
            goldens[f"timm_{name}_{shape}"] = _levels(np.asarray(tensor))
        for weights in (ResNet50_Weights.IMAGENET1K_V2, EfficientNet_B1_Weights.IMAGENET1K_V1):
            name = f"{type(weights).__name__.removesuffix('_Weights').lower()}.{weights.name}"
            goldens[f"torchvision_{name}_{shape}"] = _levels(np.asarray(weights.transforms()(image)))
        H0, W0 = rgb.shape[:2]
        r = min(192 / H0, 256 / W0)
        h, w = round(H0 * r), round(W0 * r)
        top, left = (192 - h) // 2, (256 - w) // 2
        boxed = np.full((192, 256, 3), 114, np.uint8)
        boxed[top : top + h, left : left + w] = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
        goldens[f"letterbox_{shape}"] = _levels(boxed.transpose(2, 0, 1) / 255)
    goldens["torchvision_presets"] = np.frombuffer(json.dumps(_weights()).encode(), np.uint8)
    np.savez_compressed(Path(__file__).with_name("preset_goldens.npz"), **goldens)


if __name__ == "__main__":
    main()
