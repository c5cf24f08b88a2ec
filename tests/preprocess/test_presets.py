"""Settings that people already have: the tensor against the library that they were written for, errors by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_preset_goldens import STRIDE, TIMM, TRANSFORMERS, pictures
from onnx import parser
from PIL import Image

from onnxcam.cli import main
from onnxcam.errors import UsageError
from onnxcam.explainer import Explainer
from onnxcam.graph.signature import ImageInput
from onnxcam.picture import Picture, load_picture
from onnxcam.preprocess import Preprocess
from onnxcam.presets import preset, read_labels, torchvision_weights, ultralytics

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


# --- where settings and labels come from ----------------------------------------------------------------------------

CLASSES = ("cat", "dog", "owl")


def network(shape="N,3,8,8", dtype="float"):
    """Three classes: how red, green and blue the picture is."""
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        colours ({dtype}[{shape}] x) => (float[N,3] z)
        {{
            f = Cast<to=1>(x)
            a = Relu(f)
            p = GlobalAveragePool(a)
            z = Flatten(p)
        }}""")


@pytest.fixture
def folder(tmp_path):
    onnx.save(network(), tmp_path / "model.onnx")
    return tmp_path


def write(path, config):
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def hugging_face(size=8, **changes):
    return TRANSFORMERS["vit"] | {"size": {"height": size, "width": size}} | changes


def explainer(model, **options):
    return Explainer(model, threads=1, **options)


def test_a_file_given_is_used_said_and_recorded(folder):
    path = write(folder / "any.json", hugging_face())
    found = explainer(folder / "model.onnx", preprocess=path)
    expected = Preprocess((8, 8), "squash", mean=(0.5,) * 3, std=(0.5,) * 3, pad=0, rounding="transformers")
    assert found.preprocess == expected
    assert f"preprocessing: {path}" in found.notes
    provenance = found(np.zeros((9, 9, 3), np.uint8)).provenance
    assert provenance["preprocess_source"] == str(path)
    assert Preprocess.from_json(provenance["preprocess"]) == expected


def test_the_order_is_given_metadata_beside_defaults(folder):
    model = folder / "model.onnx"
    assert "preprocessing: ImageNet's defaults (the model says nothing)" in explainer(model).notes
    beside = write(folder / "preprocessor_config.json", hugging_face())
    assert f"preprocessing: {beside}" in explainer(model).notes
    assert "preprocessing: ImageNet's defaults, as asked for" in explainer(model, preprocess="imagenet").notes
    proto = network()
    onnx.helper.set_model_props(proto, {"names": "['a', 'b', 'c']", "task": "classify", "imgsz": "[8, 8]"})
    onnx.save(proto, model)
    exported = explainer(model)
    assert "preprocessing: Ultralytics metadata in the model (classify)" in exported.notes
    assert exported.preprocess == Preprocess((8, 8))
    assert exported.labels == ("a", "b", "c")
    onnx.helper.set_model_props(proto, {"onnxcam.preprocess": '{"size": [8, 8], "pad": 7}', "names": "", "task": "?"})
    onnx.save(proto, model)
    ours = explainer(model, labels=CLASSES)
    assert "preprocessing: from the model's metadata" in ours.notes
    assert ours.preprocess == Preprocess((8, 8), pad=7)
    given = write(folder / "own.json", {"fit": "squash", "resample": "lanczos"})
    own = explainer(model, preprocess=given, labels=CLASSES)
    assert own.preprocess == Preprocess((8, 8), "squash", resample="lanczos")


def test_options_go_over_a_preset(folder):
    path = write(folder / "any.json", hugging_face())
    found = explainer(folder / "model.onnx", preprocess={"preset": path, "mean": (0.25,), "fit": "crop"})
    assert (found.preprocess.mean, found.preprocess.std, found.preprocess.fit) == ((0.25,), (0.5,) * 3, "crop")
    assert f"preprocessing: mean, fit as given, the rest {path}" in found.notes


def test_a_model_of_open_size_takes_the_presets(tmp_path):
    onnx.save(network("N,3,H,W"), tmp_path / "model.onnx")
    write(tmp_path / "config.json", {"pretrained_cfg": TIMM["center"] | {"input_size": [3, 40, 40]}})
    found = explainer(tmp_path / "model.onnx")
    assert (found.preprocess.size, found.preprocess.resize) == ((40, 40), (44, 44))
    asked = explainer(tmp_path / "model.onnx", size=(80, 80))
    assert (asked.preprocess.size, asked.preprocess.resize) == ((80, 80), (88, 88))


def test_timms_settings_for_testing_are_those_of_a_model_of_that_size(tmp_path):
    config = TIMM["center"] | {"test_input_size": [3, 288, 288], "test_crop_pct": 1.0}
    path = write(tmp_path / "config.json", config)
    assert preset(path).settings["resize"] == (248, 248)
    assert preset(path, (224, 224)).size == (224, 224)
    assert (preset(path, (288, 288)).size, preset(path, (288, 288)).settings["resize"]) == ((288, 288), (288, 288))


def test_files_beside_that_do_not_fit_are_named_and_not_used(folder):
    beside = write(folder / "preprocessor_config.json", hugging_face(16))
    write(folder / "labels.txt", "cat\ndog\n")
    found = explainer(folder / "model.onnx")
    assert f"beside the model, not used: {beside}: size: found 16x16, expected 8x8, which `x` takes" in found.notes
    assert f"labels not used: {folder / 'labels.txt'} has 2, but the model has 3 classes" in found.notes
    assert "preprocessing: ImageNet's defaults (the model says nothing)" in found.notes
    assert found.labels is None
    beside.write_text("{")
    assert any(
        n.startswith(f"beside the model, not used: {beside}: is not JSON")
        for n in explainer(folder / "model.onnx").notes
    )


def test_the_files_of_a_model_in_onnx_are_one_folder_above(tmp_path):
    (tmp_path / "onnx").mkdir()
    onnx.save(network(), tmp_path / "onnx" / "model.onnx")
    above = write(tmp_path / "preprocessor_config.json", hugging_face())
    write(tmp_path / "config.json", {"id2label": {"2": "owl", "0": "cat", "1": "dog"}})
    found = explainer(tmp_path / "onnx" / "model.onnx")
    assert {f"preprocessing: {above}", f"labels: {tmp_path / 'config.json'}"} <= set(found.notes)
    assert found.labels == CLASSES


def test_a_folder_stands_for_the_files_in_it(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("settings")
    write(elsewhere / "config.json", {"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "owl"}})
    unnamed = {k: v for k, v in hugging_face().items() if k != "image_processor_type"}
    write(elsewhere / "preprocessor_config.json", unnamed)
    for given in (elsewhere, elsewhere / "config.json"):  # the config.json of a model points to its neighbour
        found = explainer(folder / "model.onnx", preprocess=given)
        assert found.preprocess.fit == "squash"
        assert found.labels == CLASSES
    write(elsewhere / "processor_config.json", {"image_processor": hugging_face(do_normalize=False)})
    (elsewhere / "preprocessor_config.json").unlink()
    assert explainer(folder / "model.onnx", preprocess=elsewhere).preprocess.mean == (0.0,)


def test_labels_are_read_from_every_form_of_file(tmp_path):
    for name, content in {
        "a.txt": "cat\ndog\nowl\n",
        "b.json": list(CLASSES),
        "c.json": {"1": "dog", "0": "cat", "2": "owl"},
        "d.json": {"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "owl"}},
        "e.json": {"pretrained_cfg": {"label_names": ["cat", "dog", "owl"]}},
        "f.json": {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n2": "dog", "n3": "owl"}},
    }.items():
        assert read_labels(write(tmp_path / name, content)) == CLASSES, name
    for content in ({"0": "cat", "2": "owl"}, {"id2label": {"1": "cat"}}, [], {"cat": 0}, [1, 2], "cat"):
        with pytest.raises(UsageError, match=r"bad\.json.*expected a list of labels, or"):
            read_labels(write(tmp_path / "bad.json", json.dumps(content)))


def test_placeholder_labels_are_none(folder):
    write(folder / "config.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}})
    assert explainer(folder / "model.onnx").labels is None


def test_names_in_the_model_are_read_as_a_literal_and_never_run(tmp_path):
    proto = network()
    onnx.helper.set_model_props(proto, {"names": "{2: 'owl', 0: 'cat', 1: 'dog'}", "stride": "32"})
    assert explainer(proto).labels == CLASSES
    assert "preprocessing: Ultralytics metadata in the model (no task: as for detection)" in explainer(proto).notes
    names = f"open({str(tmp_path / 'run')!r}, 'w').name"
    onnx.helper.set_model_props(proto, {"names": names, "stride": "32"})
    with pytest.raises(UsageError, match=r"metadata in the model: names: found .*, expected a list of labels"):
        explainer(proto)
    assert not (tmp_path / "run").exists()
    assert explainer(proto, labels=CLASSES).labels == CLASSES


def test_ultralytics_sizes_and_tasks():
    for imgsz, size in (("[480, 640]", (480, 640)), ("640", (640, 640)), ("(32, 64)", (32, 64))):
        found = ultralytics({"names": "", "task": "segment", "imgsz": imgsz}, None)
        settings, _ = found.preprocess(image_input(), found.size)
        assert settings == Preprocess(size, "letterbox", resample="opencv-bilinear")
    assert ultralytics({"names": "", "task": "pose", "imgsz": "640"}, (320, 320)).size == (320, 320)
    assert ultralytics({"names": "anything"}, None) is None
    for properties, said in (
        ({"task": "classify", "imgsz": "os"}, "imgsz: found 'os', expected [height, width]"),
        ({"task": "depth"}, "task: found 'depth', expected one of detect"),
    ):
        with pytest.raises(UsageError) as caught:
            ultralytics({"names": "", **properties}, None)
        assert said in caught.value.message


def test_a_model_that_normalises_inside_gets_the_pixels_as_they_are(tmp_path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    onnx.save(network(dtype="uint8"), tmp_path / "model.onnx")
    plain = explainer(tmp_path / "model.onnx", preprocess={"crop_pct": 1.0})
    write(tmp_path / "preprocessor_config.json", hugging_face())
    stated = explainer(tmp_path / "model.onnx")
    for found in (plain, stated):
        assert np.array_equal(found.preprocess(Picture(pixels, "", None))[0][0], pixels.transpose(2, 0, 1))
    assert stated.preprocess.fit == "squash"
    assert any("`x` is uint8, so the model normalises inside: pixels as they are" in n for n in stated.notes)
    quantised = image_input(dtype="int8", quantization=(0.5, 3))
    settings, _ = preset(tmp_path / "preprocessor_config.json").preprocess(quantised, (8, 8))
    assert settings(Picture(np.full((8, 8, 3), 255, np.uint8), "", None))[0].max() == 5  # (1 - 0.5) / 0.5 / 0.5 + 3


MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
BY_CHANNEL = (1, 3, 1, 1)
# What a graph starts with -> the factor on pixels 0..255 that it expects.
STARTS = {
    "pixels to 0..1, then ImageNet's mean and deviation": ("h = Div(x, d) i = Sub(h, m) n = Div(i, s)", 1,
        {"d": np.float32(255), "m": MEAN.reshape(BY_CHANNEL), "s": STD.reshape(BY_CHANNEL)}),
    "the same in one step": ("h = Mul(x, a) n = Add(h, b)", 1,
        {"a": (1 / 255 / STD).reshape(BY_CHANNEL), "b": (-MEAN / STD).reshape(BY_CHANNEL)}),
    "mean and deviation of what is 0..1": ("h = Sub(x, m) n = Div(h, s)", 1 / 255,
        {"m": MEAN.reshape(BY_CHANNEL), "s": STD.reshape(BY_CHANNEL)}),
    "Keras's Rescaling to -1..1": ("h = Mul(x, a) n = Sub(h, one)", 1,
        {"a": np.float32(1 / 127.5), "one": np.float32(1)}),
    "Keras's Rescaling to 0..1": ("n = Mul(x, a)", 1, {"a": np.float32(1 / 255)}),
    "Caffe's mean": ("n = Sub(x, m)", 1, {"m": np.float32([104, 117, 123]).reshape(BY_CHANNEL)}),
    "0..1 to -1..1, moved and cast": ("c = Cast<to=1>(x) t = Transpose<perm=[0,2,3,1]>(c) h = Mul(t, two) "
        "i = Sub(h, one) n = Transpose<perm=[0,3,1,2]>(i)", 1 / 255, {"two": np.float32(2), "one": np.float32(1)}),
    "0..1 to 0..255": ("n = Mul(x, a)", 1 / 255, {"a": np.float32(255)}),
}  # fmt: skip
OTHER_STARTS = {
    "nothing": ("n = Relu(x)", {}),
    "from ImageNet's normalisation to another": ("h = Mul(x, a) n = Add(h, b)",
        {"a": (STD / 0.5).reshape(BY_CHANNEL), "b": ((MEAN - 0.5) / 0.5).reshape(BY_CHANNEL)}),
    "from -1..1 to 0..1": ("h = Mul(x, a) n = Add(h, a)", {"a": np.float32(0.5)}),
    "a small factor": ("n = Mul(x, a)", {"a": np.float32(2)}),
    "a factor per column": ("n = Mul(x, a)", {"a": np.full((1, 1, 1, 8), 1 / 255, np.float32)}),
    "one of two readers": ("n = Mul(x, a) k = Relu(x)", {"a": np.float32(1 / 255)}),
    "upside down": ("n = Div(a, x)", {"a": np.float32(1 / 255)}),
}  # fmt: skip


def starting(body, arrays, dtype="float"):
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]> m ({dtype}[N,3,8,8] x) => (float[N,3] z)
        {{ {body} r = LeakyRelu(n) p = GlobalAveragePool(r) z = Flatten(p) }}""")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items())
    return model


@pytest.mark.parametrize("name", STARTS)
def test_a_graph_that_starts_by_normalising_gets_the_pixels_it_expects(name):
    body, scale, arrays = STARTS[name]
    found = explainer(starting(body, arrays))
    assert (found.preprocess.mean, found.preprocess.std, found.preprocess.scale) == ((0,), (1,), scale)
    expected = "0..255" if scale == 1 else "in 0..1"
    note = f"preprocessing: the model starts by normalising `x` itself: pixels {expected}, not normalised before"
    assert note in " ".join(found.notes)


@pytest.mark.parametrize("name", OTHER_STARTS)
def test_other_arithmetic_at_the_start_of_a_graph_is_no_normalisation(name):
    assert explainer(starting(*OTHER_STARTS[name])).preprocess.mean == (0.485, 0.456, 0.406)


def test_a_preset_is_not_applied_twice_where_the_graph_normalises(tmp_path):
    """The tensor behind the graph's own normalisation is that of a model without it, given the same file."""
    config = write(
        tmp_path / "preprocessor_config.json",
        hugging_face(image_mean=list(map(float, MEAN)), image_std=list(map(float, STD))),
    )
    body, _, arrays = STARTS["pixels to 0..1, then ImageNet's mean and deviation"]
    inside, plain = (explainer(starting(b, a), preprocess=config) for b, a in ((body, arrays), ("n = Identity(x)", {})))
    assert inside.preprocess.fit == "squash" and inside.preprocess.mean != plain.preprocess.mean
    rgb = np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8)
    scores = [sorted(c.score for c in e(rgb).top) for e in (inside, plain)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert np.ptp(scores[0]) > 0.1
    own = write(tmp_path / "own.json", {"mean": [0.5], "std": [0.25]})
    assert explainer(starting(body, arrays), preprocess=own).preprocess.mean == (0.5,)


def test_yaml_needs_pyyaml_and_says_so(folder, monkeypatch):
    path = write(folder / "own.yaml", "fit: squash\nmean: [0.5]\n")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "yaml", None)
        with pytest.raises(UsageError) as caught:
            preset(path)
        assert caught.value.message == f"{path}: reading YAML needs PyYAML, which is not installed"
        assert "pip install onnxcam[yaml]" in caught.value.hint
    pytest.importorskip("yaml")
    found = explainer(folder / "model.onnx", preprocess=path)
    assert (found.preprocess.fit, found.preprocess.mean) == ("squash", (0.5,))
    with pytest.raises(UsageError, match=r"own\.yaml: is not YAML"):
        preset(write(path, "a: [1"))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{'a': 1}", "is not JSON: Expecting property name"),
        ("[1, 2]", "found list, expected an object with settings"),
        ({"fitt": "crop"}, "fitt: unknown key (did you mean 'fit'?), expected one of size, fit"),
        ({"fit": "croop"}, "fit: found 'croop' (did you mean 'crop'?), expected one of crop"),
        (hugging_face(16), "size: found 16x16, expected 8x8, which `x` takes"),
        (hugging_face() | {"size": None}, 'size: found nothing, expected a number, {"shortest_edge": number} or'),
        (hugging_face() | {"size": {"longest_edge": 8}}, 'size: found {"longest_edge": 8}, expected a number'),
        (hugging_face() | {"image_mean": None}, "image_mean: found nothing, expected one number, or one per channel"),
        (hugging_face() | {"image_std": [1, 0, 1]}, "image_std: found [1.0, 0.0, 1.0], expected numbers other than 0"),
        (hugging_face() | {"resample": 9}, "resample: found 9, expected a Pillow filter from 0 to 5"),
        (hugging_face() | {"do_rescale": "yes"}, 'do_rescale: found "yes", expected true or false'),
        (hugging_face() | {"do_resize": False}, "do_resize: found false, expected true"),
        (hugging_face() | {"do_pad": True}, "do_pad: found true, expected false"),
        (
            hugging_face() | {"image_processor_type": "DetrImageProcessor"},
            "image_processor_type: found DetrImageProcessor, expected an image processor of ViT, DeiT, Beit,",
        ),
        ({"image_mean": [0.5], "size": 8}, "image_processor_type: found nothing, expected an image processor of ViT,"),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": 8, "image_mean": [0.5], "image_std": [0.5]},
            "size: found the short edge 8 without a centre crop, expected a size that is the same for all",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": 8, "image_mean": [0.5], "image_std": [0.5]},
            "crop_size: found nothing, expected a number",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 8, "image_mean": [0.5], "image_std": [0.5]},
            "resample: found nothing, expected a Pillow filter",
        ),
        ({"input_size": [224, 224]}, "input_size: found [224, 224], expected [channels, height, width]"),
        ({"pretrained_cfg": {}}, "input_size: found nothing, expected [channels, height, width]"),
        ({"input_size": [1, 8, 8]}, "input_size: found gray, expected 3 channels, which `x` takes"),
        (TIMM["center"] | {"crop_mode": "tile"}, 'crop_mode: found "tile", expected one of center, squash, border'),
        (TIMM["center"] | {"interpolation": "random"}, 'interpolation: found "random", expected one of nearest'),
        ({"layout": "nhwc"}, "layout: found nhwc, expected nchw, which `x` takes"),
        ({"dtype": "uint8"}, "dtype: found uint8, expected float32, which `x` takes"),
    ],
)
def test_a_file_that_is_wrong_or_contradicts_the_model_is_refused_by_name(config, said, folder):
    path = write(folder / "given.json", config)
    with pytest.raises(UsageError) as caught:
        explainer(folder / "model.onnx", preprocess=path)
    assert caught.value.message.startswith(f"{path}: ")
    assert said in caught.value.message
    assert caught.value.hint


def test_a_preset_for_colours_does_not_fit_a_grey_model(tmp_path):
    grey = network("N,1,8,8").SerializeToString()
    path = write(tmp_path / "given.json", hugging_face())
    with pytest.raises(UsageError, match=r"image_mean: found 3 values, expected 1, which `x` takes as channels"):
        explainer(grey, preprocess=path)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("torchvision:resnet5O", "no such model or weights", "`torchvision:resnet50`"),
        ("torchvision:resnet50.V3", "no such model or weights", "`torchvision:resnet50.IMAGENET1K_V1`"),
        ("torchvision:zzz", "no such model or weights", "such as `torchvision:resnet50`"),
        ("imagnet", "`imagnet`: no such file, and no preset of that name", "did you mean `imagenet`?"),
        ("no/such.json", "no such file, and no preset of that name", "give a JSON or YAML file"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, message, hint):
    with pytest.raises(UsageError) as caught:
        preset(name)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_folder_or_config_without_settings_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"found none of preprocessor_config\.json"):
        preset(tmp_path)
    with pytest.raises(UsageError, match="says nothing about preprocessing, and there is no prepro"):
        preset(write(tmp_path / "config.json", {"id2label": {"0": "cat"}}))


def test_the_command_line_takes_a_file_or_a_name(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Image.new("RGB", (20, 10), "green").save("picture.png")
    write(folder / "own.json", {"fit": "squash", "mean": [0.25]})
    arguments = ["explain", "model.onnx", "picture.png", "-o", "out.json", "--preprocess"]
    assert main([*arguments, "own.json", "--std", "0.5"]) == 0
    assert "preprocessing: std as given, the rest own.json" in capsys.readouterr().err
    recorded = json.loads((folder / "out.json").read_text())["provenance"]["preprocess"]
    assert (recorded["fit"], recorded["mean"], recorded["std"]) == ("squash", [0.25], [0.5])
    assert main([*arguments, "torchvision:resnet50"]) == 2
    assert "torchvision:resnet50.IMAGENET1K_V2: crop_size: found 224x224, expected 8x8" in capsys.readouterr().err


def test_a_mean_and_deviation_refer_to_pixels_in_0_to_1_of_a_quantised_model_too() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (uint8[1,3,8,8] x) => (float[1,2] y)
        <float[2,3] w = {1, 0, 0, 0, 1, 0}, float s = {0.0078125}, uint8 z = {128}>
        { f = DequantizeLinear(x, s, z) a = Relu(f) p = GlobalAveragePool(a) v = Flatten(p)
        y = Gemm<transB=1>(v, w) }""")
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    picture = load_picture(pixels)
    plain, _ = Explainer(model, preprocess={"fit": "squash"}).preprocess(picture)
    settings = {"fit": "squash", "mean": (0.5,), "std": (0.5,)}  # -1 to 1: what 0 to 255 stand for, but for one step
    given, _ = Explainer(model, preprocess=settings).preprocess(picture)
    assert np.array_equal(plain, pixels.transpose(2, 0, 1)[None])
    assert np.abs(given.astype(int) - plain).max() <= 1
