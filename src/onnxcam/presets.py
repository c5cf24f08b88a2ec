"""Preprocessing and labels from the files, names and metadata that people already have.

Hugging Face `preprocessor_config.json` and `config.json`, timm's `pretrained_cfg`, the metadata that Ultralytics and
YOLOv5 write into a model, torchvision's classification weights by name, JSON or YAML of one's own.
"""

import ast
import difflib
import json
import math
import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.errors import UsageError
from onnxcam.graph.signature import ImageInput
from onnxcam.jsontext import DEPTH, parsed_json
from onnxcam.preprocess import Preprocess, imagenet_defaults

Size = tuple[int, int]

IMAGENET = "imagenet"
"""The name of the preset that states nothing, so that the defaults hold whatever the model and its folder say."""


@dataclass(frozen=True)
class Preset:
    """What a file, a name or metadata says about a model's pictures; of `settings`, what is absent is not stated."""

    source: str
    """A file's path or a name, for messages and the record."""
    settings: Mapping[str, Any]
    """Fields of `Preprocess`."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """What the source itself calls a field, where that is another name."""
    labels: tuple[str, ...] | None = None
    labels_source: str = ""
    own: bool = False
    """Written for onnxcam, so that every field holds for the model as it is."""

    @property
    def size(self) -> Size | None:
        """(H, W) of the tensor, where it is stated."""
        size = self.settings.get("size")
        return None if size is None else (int(size[0]), int(size[1]))

    def contradiction(self, image: ImageInput) -> str | None:
        """What the preset says and the model's input refutes, in words; None where they agree."""
        takes = f"which `{image.name}` takes"
        if self.size is not None:
            expected = (image.height or self.size[0], image.width or self.size[1])
            if self.size != expected:
                found = "{}x{}".format(*self.size)
                return f"{self._key('size')}: found {found}, expected {expected[0]}x{expected[1]}, {takes}"
        for name in ("mean", "std"):
            values = self.settings.get(name, (0,))
            if len(values) not in (1, image.channels):
                return f"{self._key(name)}: found {len(values)} values, expected {image.channels}, {takes} as channels"
        channels = self.settings.get("channels")
        if channels is not None and {"gray": 1}.get(channels, 3) != image.channels:
            return f"{self._key('channels')}: found {channels}, expected {image.channels} channels, {takes}"
        for name in ("layout", "dtype", "quantization"):
            expected_value = getattr(image, name)
            found_value = self.settings.get(name, expected_value)
            if (tuple(found_value) if isinstance(found_value, list) else found_value) != expected_value:
                return f"{self._key(name)}: found {found_value}, expected {expected_value}, {takes}"
        return None

    def preprocess(self, image: ImageInput, size: Size) -> tuple[Preprocess, str]:
        """The settings for a model's input and, in words, where they come from.

        A `size` (H, W) other than the preset's keeps the share of the picture that is seen. A model that normalises
        inside, as one with an integer input without quantisation does, gets the resized pixels as it expects them.
        """
        stated, source = dict(self.settings), self.source
        if self.size not in (None, size) and stated.get("resize") is not None:
            stated["resize"] = tuple(
                round(r * new / old) for r, new, old in zip(stated["resize"], size, self.size or size, strict=True)
            )
        stated |= {"size": size, "layout": image.layout, "dtype": image.dtype, "quantization": image.quantization}
        stated.setdefault("channels", "gray" if image.channels == 1 else "rgb")
        if not self.own and np.dtype(image.dtype).kind != "f" and image.quantization is None:
            plain = imagenet_defaults(size, dtype=image.dtype)
            stated |= {"mean": plain.mean, "std": plain.std, "scale": plain.scale}
            source += f"; `{image.name}` is {image.dtype}, so the model normalises inside: pixels as they are"
        elif not self.own and image.inside is not None:
            stated |= {"mean": (0.0,), "std": (1.0,), "scale": image.inside}
            source += f"; {inside(image)}"
        try:
            return Preprocess.from_json({k: list(v) if isinstance(v, tuple) else v for k, v in stated.items()}), source
        except UsageError as error:
            raise UsageError(f"{self.source}: {error.message}", _OWN) from error

    def _key(self, name: str) -> str:
        return f"{self.source}: {self.keys.get(name, name)}"


def inside(image: ImageInput) -> str:
    """That the graph normalises a float picture itself, and which pixels it expects."""
    expected = "0..255" if image.inside == 1 else "in 0..1"
    return f"the model starts by normalising `{image.name}` itself: pixels {expected}, not normalised before"


_OWN = "correct the file, or write the settings into a JSON of your own: docs/preprocessing.md lists the fields"


def preset(given: str | os.PathLike[str], fixed: Size | None = None) -> Preset:
    """What a file, the files of a folder, or a name says; `fixed` is the (H, W) of a model that takes no other.

    A file is a preprocessor_config.json, a config.json, a timm configuration or one with fields of `Preprocess`, as
    JSON or YAML. Names are `imagenet`, `torchvision:MODEL[.WEIGHTS]` and `detector:KIND`.

    Raises: UsageError naming the file, the key, what was found and what was expected.
    """
    name = os.fspath(given)
    if name == IMAGENET:
        return Preset(IMAGENET, {})
    if name.startswith("torchvision:"):
        return _torchvision(name.removeprefix("torchvision:"))
    if name.startswith("detector:"):
        return _detector(name)
    path = Path(name)
    if path.is_dir():
        found = _in_folder(path, fixed)
        if found is None:
            raise UsageError(
                f"{name}: found none of {', '.join(_FILES)} in this folder", "name the file that holds the settings"
            )
        return found
    if not path.is_file():
        close = difflib.get_close_matches(name, [IMAGENET, "torchvision:resnet50"], 1, 0.5)
        raise UsageError(
            f"preprocessing `{name}`: no such file, and no preset of that name",
            (f"did you mean `{close[0]}`? " if close else "")
            + "give a JSON or YAML file, `imagenet`, or `torchvision:MODEL`",
        )
    return _from_file(path, fixed)


_FILES = ("preprocessor_config.json", "processor_config.json", "config.json")


def beside(folder: Path, image: ImageInput) -> tuple[Preset | None, list[str]]:
    """The preset in the files beside a model, and notes about files that are there but do not fit.

    Hugging Face keeps models in `onnx/` and the files one folder above; there they are found too.
    """
    fixed = (image.height, image.width) if image.height and image.width else None
    for place in _places(folder):
        try:
            found = _in_folder(place, fixed)
        except UsageError as error:
            return None, [f"beside the model, not used: {error.message}"]
        if found is not None:
            problem = found.contradiction(image)
            return (None, [f"beside the model, not used: {problem}"]) if problem else (found, [])
    return None, []


def labels_beside(folder: Path, classes: int) -> tuple[tuple[str, ...] | None, list[str]]:
    """The labels in config.json or labels.txt beside a model, and notes: where from, or why not."""
    for path in (place / name for place in _places(folder) for name in ("config.json", "labels.txt")):
        if not path.is_file():
            continue
        try:
            names = labels_of(_load(path), str(path)) if path.suffix == ".json" else read_labels(path)
        except UsageError as error:
            return None, [f"beside the model, not used: {error.message}"]
        if names is not None:
            return fitting(names, str(path), classes)
    return None, []


def labels_from_json(text: str, source: str) -> tuple[str, ...]:
    """Labels from the JSON that `source` holds: a list, or {index: label}. Raises: UsageError where it is neither."""
    try:
        return _numbered(parsed_json(text), f"{source}: labels")
    except ValueError as error:
        raise UsageError(f"{source}: labels: not JSON: {error}", "pass others with `--labels`") from error


def fitting(names: tuple[str, ...], source: str, classes: int) -> tuple[tuple[str, ...] | None, list[str]]:
    """Labels that nobody asked for by name, where there are as many as classes; a note says so or why not."""
    if len(names) == classes:
        return names, [f"labels: {source}"]
    return None, [f"labels not used: {source} has {len(names)}, but the model has {classes} classes"]


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels from a text file with one per line, or from JSON: a list, {index: label}, or a config.json (id2label).

    Raises: UsageError where the file cannot be read or holds no labels.
    """
    if path.suffix.lower() == ".json":
        found = _load(path, json_only=True)
        names = labels_of(found, str(path))
        if names is None:
            names = _numbered(found, str(path))
        return names
    try:
        return tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"labels {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "give a text file with one label per line",
        ) from error


def labels_of(config: Any, source: str) -> tuple[str, ...] | None:
    """The labels in a Hugging Face or timm config.json; None where it has none but placeholders.

    Raises: UsageError where `id2label` is not numbered from 0 without gaps.
    """
    if not isinstance(config, Mapping):
        return None
    inner = config.get("pretrained_cfg")
    stated = ChainMap(*({k: v for k, v in c.items() if v} for c in (config, inner) if isinstance(c, Mapping)))
    if "label_names" in stated:
        names = _numbered(stated["label_names"], f"{source}: label_names")
        described = stated.get("label_descriptions")
        return tuple(str(described.get(n, n)) for n in names) if isinstance(described, Mapping) else names
    if not config.get("id2label"):
        return None
    found = _numbered(config["id2label"], f"{source}: id2label")
    return None if found == tuple(f"LABEL_{i}" for i in range(len(found))) else found


def _numbered(found: Any, source: str) -> tuple[str, ...]:
    """Labels in order from a list, or from an object numbered 0, 1, ..."""
    if isinstance(found, list) and found and all(isinstance(n, str) for n in found):
        return tuple(found)
    if isinstance(found, Mapping) and found:
        names = {str(key): str(name) for key, name in found.items()}
        if set(names) == {str(i) for i in range(len(names))}:
            return tuple(names[str(i)] for i in range(len(names)))
    said = json.dumps(found, default=str)
    raise UsageError(
        f"{source}: found {said[:60] + '...' if len(said) > 60 else said}, "
        'expected a list of labels, or {"0": label, "1": label, ...} without gaps',
        "correct the file, or give a text file with one label per line",
    )


def _places(folder: Path) -> list[Path]:
    return [folder, folder.parent] if folder.name == "onnx" else [folder]


def _in_folder(folder: Path, fixed: Size | None) -> Preset | None:
    for path in (folder / name for name in _FILES):
        if path.is_file() and _kind(config := _load(path), path.name) is not None:
            return _parsed(config, path, fixed)
    return None


def _from_file(path: Path, fixed: Size | None) -> Preset:
    config = _load(path)
    if not isinstance(config, Mapping):
        raise UsageError(f"{path}: found {type(config).__name__}, expected an object with settings", _OWN)
    if _kind(config) is None and path.name == "config.json":
        found = _in_folder(path.parent, fixed)
        if found is None:
            raise UsageError(
                f"{path}: says nothing about preprocessing, and there is no preprocessor_config.json beside it",
                "give the preprocessor_config.json of the model, or `imagenet`",
            )
        return found
    return _parsed(config, path, fixed)


def _kind(config: Any, name: str = "") -> str | None:
    """Whose settings these are; None for the config.json of a model, which has none."""
    if not isinstance(config, Mapping):
        return None
    if "pretrained_cfg" in config or "input_size" in config:
        return "timm"
    if isinstance(config.get("image_processor"), Mapping):
        return "nested"
    if {"image_processor_type", "feature_extractor_type", "image_mean", "do_resize", "do_normalize"} & config.keys():
        return "transformers"
    if name in _FILES or {"id2label", "model_type", "architectures"} & config.keys():
        return None
    return "own"


def _parsed(config: Mapping[str, Any], path: Path, fixed: Size | None) -> Preset:
    kind, source = _kind(config), str(path)
    if kind == "timm":
        found = _timm(config.get("pretrained_cfg", config), source, fixed)
        return replace(found, labels=labels_of(config, source), labels_source=source)
    if kind == "own":
        known = [f.name for f in fields(Preprocess)]
        unknown = [key for key in config if key not in known]
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, 1)
            raise UsageError(
                f"{source}: {unknown[0]}: unknown key{f' (did you mean {close[0]!r}?)' if close else ''}, "
                f"expected one of {', '.join(known)}",
                _OWN,
            )
        try:
            stated = Preprocess.from_json({"size": [1, 1]} | dict(config))
        except UsageError as error:
            raise UsageError(f"{source}: {error.message}", _OWN) from error
        return Preset(source, {key: getattr(stated, key) for key in config}, own=True)
    sibling = path.parent / "config.json"
    model = _load(sibling) if sibling.is_file() and path.name != "config.json" else {}
    if kind == "nested":
        config = config["image_processor"]
    found = _transformers(config, source, str(model.get("model_type", "")) if isinstance(model, Mapping) else "")
    return replace(found, labels=labels_of(model, str(sibling)), labels_source=str(sibling))


def _load(path: Path, json_only: bool = False) -> Any:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "give a JSON or YAML file") from error
    if path.suffix.lower() in (".yaml", ".yml") and not json_only:
        try:
            yaml = import_module("yaml")
        except ImportError as error:
            raise UsageError(
                f"{path}: reading YAML needs PyYAML, which is not installed",
                "`pip install onnxcam[yaml]`, or write the same settings as JSON",
            ) from error
        try:
            depth = 0
            for event in yaml.parse(text, yaml.SafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if isinstance(event, yaml.AliasEvent) or depth > DEPTH:
                    raise ValueError(f"aliases (`*name`) and more than {DEPTH} levels are not taken")
            return yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UsageError(f"{path}: is not YAML: {error}", "correct the file") from error
    try:
        return parsed_json(text)
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON: {error}", "correct the file; YAML must be called .yaml") from error


# --- what other libraries write -------------------------------------------------------------------------------------

_ABSENT: Any = object()


@dataclass(frozen=True)
class _Config:
    """The settings of another library, read with a designed error."""

    source: str
    values: Mapping[str, Any]

    def get(self, key: str, good: Callable[[Any], bool], expected: str, default: Any = _ABSENT) -> Any:
        value = self.values.get(key)
        if value is None and default is not _ABSENT:
            return default
        if value is None or not good(value):
            raise self.error(key, "nothing" if value is None else json.dumps(value, default=str), expected)
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, lambda v: isinstance(v, bool), "true or false", default))

    def number(self, key: str, default: Any = _ABSENT) -> float:
        return float(self.get(key, lambda v: _is_number(v) and v > 0, "a number > 0", default))

    def numbers(self, key: str, default: Any = _ABSENT) -> tuple[float, ...]:
        value = self.get(key, _is_per_channel, "one number, or one per channel", default)
        return (float(value),) if _is_number(value) else tuple(map(float, value))

    def error(self, key: str, found: str, expected: str) -> UsageError:
        return UsageError(f"{self.source}: {key}: found {found}, expected {expected}", _OWN)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _is_per_channel(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and len(value) in (1, 3) and all(map(_is_number, value)))


def _is_edge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class _Processor:
    """How a Hugging Face image processor reads a configuration that leaves something out."""

    square: bool
    """A bare number as size is the height and the width, not the short edge."""
    center_crop: bool
    resample: int | None
    """None where versions of transformers differ, so that the file has to say it."""


_PROCESSORS = {
    "ViT": _Processor(True, False, 2),
    "DeiT": _Processor(True, True, 3),
    "Beit": _Processor(True, False, 3),
    "Bit": _Processor(False, True, 3),
    "Blip": _Processor(True, False, 3),
    "CLIP": _Processor(False, True, 3),
    "ChineseCLIP": _Processor(False, True, 3),
    "ConvNext": _Processor(False, False, None),
    "DINOv3ViT": _Processor(True, False, 2),
    "EfficientNet": _Processor(True, False, None),
    "Levit": _Processor(False, True, 3),
    "MobileNetV1": _Processor(False, True, 2),
    "MobileNetV2": _Processor(False, True, 2),
    "MobileViT": _Processor(False, True, None),
    "PoolFormer": _Processor(False, True, 3),
    "Pvt": _Processor(True, False, None),
    "Segformer": _Processor(True, False, 2),
    "Siglip": _Processor(False, False, 3),
}
# The processor of a `model_type` of config.json, for files of early versions that do not name theirs.
_MODEL_TYPES = {
    **dict.fromkeys(("vit", "swin", "swinv2", "vit_mae", "vit_msn", "swiftformer", "dinat", "ijepa"), "ViT"),
    **dict.fromkeys(("convnext", "convnextv2", "resnet", "regnet", "cvt"), "ConvNext"),
    **dict.fromkeys(("bit", "dinov2", "focalnet", "hiera"), "Bit"),
    **dict.fromkeys(("beit", "data2vec-vision"), "Beit"),
    **dict.fromkeys(("mobilevit", "mobilevitv2"), "MobileViT"),
    **dict.fromkeys(("pvt", "pvt_v2"), "Pvt"),
    "deit": "DeiT",
    "blip": "Blip",
    "chinese_clip": "ChineseCLIP",
    "clip": "CLIP",
    "dinov3_vit": "DINOv3ViT",
    "efficientnet": "EfficientNet",
    "levit": "Levit",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "poolformer": "PoolFormer",
    "segformer": "Segformer",
    "siglip": "Siglip",
}
_PIL_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def _transformers(values: Mapping[str, Any], source: str, model_type: str) -> Preset:
    """A Hugging Face image processor's configuration: resize, centre crop, rescale, normalise, in that order."""
    config = _Config(source, values)
    stated = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = str(stated or _MODEL_TYPES.get(model_type) or "nothing")
    name = name.removesuffix("Fast").removesuffix("Pil")
    name = name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in _PROCESSORS:
        expected = f"an image processor of {', '.join(_PROCESSORS)}"
        raise config.error("image_processor_type", str(stated or "nothing"), expected)
    kind = _PROCESSORS[name]
    if not config.flag("do_resize", True):
        raise config.error("do_resize", "false", "true, since the model takes pictures of one size")
    if config.flag("do_pad", False):
        raise config.error("do_pad", "true", "false: batches padded to their largest picture are not reproduced")
    size = _edges(config, "size", kind.square)
    crop = config.flag("do_center_crop", kind.center_crop) and name != "ConvNext"
    target = _edges(config, "crop_size", True) if crop else None
    number = config.get(
        "resample",
        lambda v: type(v) is int and 0 <= v < len(_PIL_FILTERS),
        "a Pillow filter from 0 to 5",
        _ABSENT if kind.resample is None else kind.resample,
    )
    settings: dict[str, Any] = {"resample": _PIL_FILTERS[number], "rounding": "transformers", "pad": 0}
    keys = {"size": "crop_size" if crop else "size", "mean": "image_mean", "std": "image_std"}

    if name == "ConvNext":
        if isinstance(size, tuple):
            if size[0] != size[1]:
                raise config.error("size", f"{size[0]}x{size[1]}", 'a number or {"shortest_edge": number}')
            size = size[0]
        target = (size, size)
        size = int(size / config.number("crop_pct", 224 / 256)) if size < 384 else target
    elif name == "Levit" and isinstance(size, int):
        size = int(256 / 224 * size)
    elif name == "PoolFormer" and (share := config.number("crop_pct", 0.9)):
        edges = size if isinstance(size, tuple) else (size, size)
        size = (int(edges[0] / share), int(edges[1] / share))
        size = size[0] if size[0] == size[1] else size
    if target is None and isinstance(size, int):
        raise config.error("size", f"the short edge {size} without a centre crop", "a size that is the same for all")
    if isinstance(size, int):
        settings |= {"fit": "crop", "size": target, "resize": (size, size)}
    else:
        settings |= {"fit": "squash", "size": target or size, "resize": None if target in (None, size) else size}

    scale = config.number("rescale_factor", 1 / 255) if config.flag("do_rescale", True) else 1.0
    mean, std = np.zeros(1), np.ones(1)
    if config.flag("do_normalize", name != "MobileViT") and name != "MobileViT":
        mean, std = np.array(config.numbers("image_mean")), np.array(config.numbers("image_std"))
        if not std.all():
            raise config.error("image_std", str(std.tolist()), "numbers other than 0")
    if name == "EfficientNet":
        if config.flag("do_rescale", True) and config.flag("rescale_offset", False):
            mean = mean + 1
        if config.flag("include_top", True):
            std = std * np.array(config.numbers("image_std"))
    if name == "MobileViT" and config.flag("do_flip_channel_order", True):
        settings["channels"] = "bgr"
    return Preset(source, settings | {"scale": scale, "mean": tuple(mean.tolist()), "std": tuple(std.tolist())}, keys)


def _edges(config: _Config, key: str, square: bool) -> Any:
    """A size of Hugging Face's: an int for the short edge, or (H, W)."""

    def good(value: Any) -> bool:
        if isinstance(value, Mapping):
            stated = {k for k, v in value.items() if v is not None}
            return stated in ({"shortest_edge"}, {"height", "width"}) and all(_is_edge(value[k]) for k in stated)
        if isinstance(value, list):
            return len(value) == 2 and all(map(_is_edge, value))
        return _is_edge(value)

    expected = 'a number, {"shortest_edge": number} or {"height": number, "width": number}'
    value = config.get(key, good, expected)
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        if edge is not None:
            return (edge, edge) if key == "crop_size" else edge
        return value["height"], value["width"]
    if isinstance(value, list):
        return tuple(value)
    return (value, value) if square else value


_TIMM_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def _timm(values: Any, source: str, fixed: Size | None) -> Preset:
    """timm's `pretrained_cfg`, read as its `resolve_data_config` and evaluation transform do.

    For a model whose size is that of `test_input_size`, the settings for testing.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{source}: pretrained_cfg: found {values!r}, expected an object", _OWN)
    config = _Config(source, values)

    def good(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 3 and all(map(_is_edge, value)) and value[0] in (1, 3)

    expected = "[channels, height, width] with 1 or 3 channels"
    C, H, W = config.get("input_size", good, expected)
    key, share = "input_size", config.number("crop_pct", 0.875)
    tested = config.get("test_input_size", good, expected, None)
    if tested is not None and fixed not in (None, (H, W)) and fixed == tuple(tested[1:]):
        (C, H, W), key, share = tested, "test_input_size", config.number("test_crop_pct", share)
    is_mode = ("center", "squash", "border").__contains__
    mode = config.get("crop_mode", is_mode, "one of center, squash, border", "center")
    resample = config.get("interpolation", _TIMM_FILTERS.__contains__, f"one of {', '.join(_TIMM_FILTERS)}", "bicubic")
    mean = config.numbers("mean", (0.485, 0.456, 0.406))
    std = config.numbers("std", (0.229, 0.224, 0.225))
    resize = (math.floor(H / share), math.floor(W / share))
    pad = tuple(min(255, max(0, round(255 * m))) for m in mean) if mode == "border" else 0
    settings = {
        "size": (H, W),
        "resize": resize,
        "fit": {"center": "crop", "squash": "squash", "border": "letterbox"}[mode],
        "rounding": "timm" if mode == "center" and resize[0] != resize[1] else "torchvision",
        "resample": resample,
        "mean": mean,
        "std": std,
        "pad": pad,
        "channels": "gray" if C == 1 else "rgb",
    }
    return Preset(source, settings, {"size": key, "channels": key})


_ULTRALYTICS = "Ultralytics metadata in the model"


def ultralytics(properties: Mapping[str, str], fixed: Size | None) -> Preset | None:
    """What Ultralytics and YOLOv5 write into a model; None where they did not. See `ultralytics_labels`.

    `fixed` is the (H, W) of a model that takes no other; an open one takes `imgsz`. Detection, segmentation, poses and
    oriented boxes get a letterbox, classification the short edge and a centre crop.

    Raises: UsageError where `imgsz` or `task` cannot be understood.
    """
    if not _is_ultralytics(properties):
        return None
    source = _ULTRALYTICS
    task = properties.get("task", "detect")
    tasks = ("detect", "segment", "pose", "obb", "classify")
    if task not in tasks:
        raise UsageError(f"{source}: task: found {task!r}, expected one of {', '.join(tasks)}", _OWN)
    size = fixed
    if size is None and "imgsz" in properties:
        found = _literal(properties["imgsz"])
        edges = [found, found] if _is_edge(found) else list(found) if isinstance(found, list | tuple) else []
        if len(edges) != 2 or not all(map(_is_edge, edges)):
            raise UsageError(f"{source}: imgsz: found {properties['imgsz']!r}, expected [height, width]", _OWN)
        size = (edges[0], edges[1])
    if task == "classify":
        fit = "crop" if size is None or size[0] == size[1] else "squash"
        settings: dict[str, Any] = {"fit": fit, "crop_pct": 1.0}
    else:
        settings = {"fit": "letterbox", "resample": "opencv-bilinear", "pad": 114}
    if size is not None:
        settings["size"] = size
    said = f"{source} ({task})" if "task" in properties else f"{source} (no task: as for detection)"
    return Preset(said, settings, {"size": "imgsz"})


def ultralytics_labels(properties: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names of `ultralytics` metadata, a Python dict or list as text, read as a literal; None without them.

    Raises: UsageError where that is something else.
    """
    return _numbered(_literal(properties["names"]), f"{_ULTRALYTICS}: names") if _is_ultralytics(properties) else None


def _is_ultralytics(properties: Mapping[str, str]) -> bool:
    return "names" in properties and not {"task", "stride"}.isdisjoint(properties)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


# torchvision's classification weights by (resized short edge, crop, filter): MODEL for IMAGENET1K_V1, MODEL.X for
# IMAGENET1K_X. Mean and deviation are ImageNet's but for those in _TORCHVISION_RANGES.
_TORCHVISION: dict[tuple[int, int, str], str] = {
    (256, 224, "bilinear"): """
        alexnet densenet121 densenet161 densenet169 densenet201 googlenet mnasnet0_5 mnasnet1_0 mobilenet_v2
        mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf
        regnet_x_800mf regnet_x_8gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
        regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext50_32x4d
        shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg13 vgg13_bn vgg16
        vgg16.FEATURES vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_l_32 wide_resnet101_2 wide_resnet50_2""",
    (232, 224, "bilinear"): """
        convnext_base convnext_large mnasnet0_75 mnasnet1_3 mobilenet_v2.V2 mobilenet_v3_large.V2 regnet_x_16gf.V2
        regnet_x_1_6gf.V2 regnet_x_32gf.V2 regnet_x_3_2gf.V2 regnet_x_400mf.V2 regnet_x_800mf.V2 regnet_x_8gf.V2
        regnet_y_16gf.V2 regnet_y_1_6gf.V2 regnet_y_32gf.V2 regnet_y_3_2gf.V2 regnet_y_400mf.V2 regnet_y_800mf.V2
        regnet_y_8gf.V2 resnet101.V2 resnet152.V2 resnet50.V2 resnext101_32x8d.V2 resnext101_64x4d resnext50_32x4d.V2
        shufflenet_v2_x1_5 shufflenet_v2_x2_0 wide_resnet101_2.V2 wide_resnet50_2.V2""",
    (224, 224, "bicubic"): """
        maxvit_t regnet_y_128gf.SWAG_LINEAR_V1 regnet_y_16gf.SWAG_LINEAR_V1 regnet_y_32gf.SWAG_LINEAR_V1
        vit_b_16.SWAG_LINEAR_V1 vit_h_14.SWAG_LINEAR_V1 vit_l_16.SWAG_LINEAR_V1""",
    (384, 384, "bicubic"): """
        regnet_y_128gf.SWAG_E2E_V1 regnet_y_16gf.SWAG_E2E_V1 regnet_y_32gf.SWAG_E2E_V1 vit_b_16.SWAG_E2E_V1""",
    (260, 256, "bicubic"): "swin_v2_s swin_v2_t",
    (230, 224, "bilinear"): "convnext_small",
    (236, 224, "bilinear"): "convnext_tiny",
    (256, 224, "bicubic"): "efficientnet_b0",
    (256, 240, "bicubic"): "efficientnet_b1",
    (255, 240, "bilinear"): "efficientnet_b1.V2",
    (288, 288, "bicubic"): "efficientnet_b2",
    (320, 300, "bicubic"): "efficientnet_b3",
    (384, 380, "bicubic"): "efficientnet_b4",
    (456, 456, "bicubic"): "efficientnet_b5",
    (528, 528, "bicubic"): "efficientnet_b6",
    (600, 600, "bicubic"): "efficientnet_b7",
    (384, 384, "bilinear"): "efficientnet_v2_s",
    (480, 480, "bilinear"): "efficientnet_v2_m",
    (480, 480, "bicubic"): "efficientnet_v2_l",
    (342, 299, "bilinear"): "inception_v3",
    (232, 224, "bicubic"): "swin_t",
    (246, 224, "bicubic"): "swin_s",
    (238, 224, "bicubic"): "swin_b",
    (272, 256, "bicubic"): "swin_v2_b",
    (242, 224, "bilinear"): "vit_l_16",
    (512, 512, "bicubic"): "vit_l_16.SWAG_E2E_V1",
    (518, 518, "bicubic"): "vit_h_14.SWAG_E2E_V1",
}
_TORCHVISION_RANGES = {
    "efficientnet_v2_l.IMAGENET1K_V1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "vgg16.IMAGENET1K_FEATURES": ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
}


def torchvision_weights() -> dict[str, Preset]:
    """The presets of all MODEL.WEIGHTS known, as torchvision 0.28 has them."""
    known = {}
    for (resize, crop, resample), names in _TORCHVISION.items():
        for model, _, weights in (name.partition(".") for name in names.split()):
            name = f"{model}.IMAGENET1K_{weights or 'V1'}"
            mean, std = _TORCHVISION_RANGES.get(name, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            settings = {"size": (crop, crop), "resize": (resize, resize), "resample": resample, "pad": 0}
            known[name] = Preset(f"torchvision:{name}", settings | {"mean": mean, "std": std}, {"size": "crop_size"})
    return known


def _torchvision(name: str) -> Preset:
    """The preset of MODEL.WEIGHTS; of MODEL alone, of the weights that torchvision calls DEFAULT."""
    known = torchvision_weights()
    model, _, weights = name.partition(".")
    for choice in (weights,) if weights else ("IMAGENET1K_V2", "IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1"):
        if f"{model}.{choice}" in known:
            return known[f"{model}.{choice}"]
    variants = [k for k in known if k.partition(".")[0] == model]
    close = variants or difflib.get_close_matches(name, [*known, *{k.partition(".")[0] for k in known}], 3)
    raise UsageError(
        f"preprocessing `torchvision:{name}`: no such model or weights among torchvision's classifiers",
        f"did you mean {' or '.join(f'`torchvision:{c}`' for c in close)}?"
        if close
        else "such as `torchvision:resnet50` or `torchvision:resnet50.IMAGENET1K_V1`",
    )


_PICTURE = {"fit": "letterbox", "scale": 1 / 255, "mean": (0.0,), "std": (1.0,), "channels": "rgb"}
_IMAGENET_MOMENTS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_DETECTORS: dict[str, dict[str, Any]] = {
    "yolov5": _PICTURE,
    "yolov8": _PICTURE,
    "yolov10": _PICTURE,
    "nms": _PICTURE,
    "boxes": _PICTURE,
    "rtdetr": {**_PICTURE, "fit": "squash"},
    "yolox": {**_PICTURE, "scale": 1.0, "channels": "bgr"},
    "yunet": {**_PICTURE, "scale": 1.0, "channels": "bgr", "fit": "squash"},
    "nanodet": {
        **_PICTURE,
        "fit": "squash",
        "channels": "bgr",
        "scale": 1.0,
        "mean": (103.53, 116.28, 123.675),
        "std": (57.375, 57.12, 58.395),
    },
    "ultraface": {**_PICTURE, "fit": "squash", "scale": 1.0, "mean": (127.0,), "std": (128.0,)},
    "ssd": {**_PICTURE, **_IMAGENET_MOMENTS, "fit": "squash"},
    "retinanet": {**_PICTURE, **_IMAGENET_MOMENTS, "fit": "squash"},
    "detr": {**_PICTURE, **_IMAGENET_MOMENTS, "fit": "squash"},
}


def _detector(name: str) -> Preset:
    """What the reference implementation of a kind of detector feeds it."""
    settings = _DETECTORS.get(name.removeprefix("detector:"))
    if settings is None:
        names = ", ".join(f"`detector:{kind}`" for kind in _DETECTORS)
        raise UsageError(f"preprocessing `{name}`: no such kind of detector", f"use one of {names}")
    return Preset(name, settings)
