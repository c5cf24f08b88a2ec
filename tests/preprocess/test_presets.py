"""Settings that people already have: the tensor against the library that they were written for, errors by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from make_preset_goldens import STRIDE, TIMM, TRANSFORMERS, pictures

from onnxcam.graph.signature import ImageInput
from onnxcam.picture import Picture
from onnxcam.preprocess import Preprocess
from onnxcam.presets import preset, torchvision_weights, ultralytics

with np.load(Path(__file__).with_name("preset_goldens.npz")) as stored:
    GOLDENS = dict(stored)
PICTURES = {name: Picture(rgb, "<array>", None) for name, rgb in pictures().items()}


def image_input(**changes):
    facts = {"name": "x", "dtype": "float32", "layout": "nchw", "channels": 3, "height": None, "width": None}
    return ImageInput(**{**facts, "batch": None, "quantization": None, **changes})


def tensor_of(found, shape):
    settings, _ = found.preprocess(image_input(), found.size)
    return settings(PICTURES[shape])[0][0], settings


def share_within_a_level(tensor, golden, settings, levels=1.001):
    """The share of values within one step of an 8-bit pixel of the golden ones, which are rounded to float16."""
    kept = tensor[:, ::STRIDE, ::STRIDE]
    assert kept.shape == golden.shape
    level = np.abs(settings.scale / np.broadcast_to(settings.std, 3))[:, np.newaxis, np.newaxis]
    rounding = np.spacing(np.abs(golden)).astype(np.float64) / 2
    return (np.abs(kept - golden.astype(np.float64)) <= level * levels + rounding).mean()


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_tensor_of_a_preprocessor_config_is_that_of_transformers(name, shape, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(TRANSFORMERS[name]))
    tensor, settings = tensor_of(preset(path), shape)
    assert share_within_a_level(tensor, GOLDENS[f"transformers_torchvision_{name}_{shape}"], settings) >= 0.999
    if name != "dinov3":  # has no other backend
        assert share_within_a_level(tensor, GOLDENS[f"transformers_pil_{name}_{shape}"], settings, levels=0.01) == 1


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("name", TIMM)
def test_the_tensor_of_a_pretrained_cfg_is_that_of_timm(name, shape, tmp_path):
    path = tmp_path / "config.json"
    for config in (TIMM[name], {"architecture": "any", "pretrained_cfg": TIMM[name]}):
        path.write_text(json.dumps(config))
        tensor, settings = tensor_of(preset(path), shape)
        assert share_within_a_level(tensor, GOLDENS[f"timm_{name}_{shape}"], settings, levels=0.01) == 1


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("name", ["resnet50.IMAGENET1K_V2", "efficientnet_b1.IMAGENET1K_V1"])
def test_the_tensor_of_a_torchvision_preset_is_that_of_torchvision(name, shape):
    tensor, settings = tensor_of(preset(f"torchvision:{name}"), shape)
    assert share_within_a_level(tensor, GOLDENS[f"torchvision_{name}_{shape}"], settings, levels=0.01) == 1


@pytest.mark.parametrize("shape", PICTURES)
def test_the_letterbox_of_ultralytics_metadata_is_opencvs(shape):
    found = ultralytics({"names": "{0: 'a'}", "task": "detect", "imgsz": "[192, 256]", "stride": "32"}, None)
    tensor, settings = tensor_of(found, shape)
    assert share_within_a_level(tensor, GOLDENS[f"letterbox_{shape}"], settings) == 1


def test_the_torchvision_presets_are_torchvisions():
    theirs = json.loads(GOLDENS["torchvision_presets"].tobytes())
    ours = torchvision_weights()
    assert len(theirs) > 100
    assert ours.keys() == theirs.keys()
    for name, facts in theirs.items():
        settings = Preprocess(**ours[name].settings)
        assert settings.size == (facts["size"],) * 2, name
        assert settings.resize == (facts["resize"],) * 2, name
        assert (settings.resample, settings.mean, settings.std) == (
            facts["resample"],
            tuple(facts["mean"]),
            tuple(facts["std"]),
        ), name
        if facts["default"]:
            assert preset(f"torchvision:{name.partition('.')[0]}").source == f"torchvision:{name}"
