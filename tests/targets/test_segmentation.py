"""A class's score summed over a region of the picture, against closed forms on a segmenter of 1 x 1 convolutions."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from target_networks import ENDS, segmenter

from onnxcam import Explainer, load_picture
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.explained import explained_model, open_graph
from onnxcam.graph.read import read
from onnxcam.targets import Linear, Segmentation

SHARED = Path(__file__).parents[3] / "shared"

W = np.array([[1.0, 0.5, -1], [-2, 1, 0.25]])
V = np.array([[0.5, 0.25], [1, -1], [-1, 2.0]])


def activations(x: np.ndarray) -> np.ndarray:
    """a (2, 4, 6) of one sample, in float64."""
    cells = x.astype(np.float64).reshape(3, 4, 2, 6, 2).mean(axis=(2, 4))
    return np.maximum(np.tensordot(W, cells, 1), 0)


def logits(x: np.ndarray) -> np.ndarray:
    """l (3, 8, 12)."""
    return np.tensordot(V, activations(x), 1).repeat(2, axis=1).repeat(2, axis=2)


def expected(x: np.ndarray, c: int, region: np.ndarray) -> tuple[float, np.ndarray]:
    """The score and the map sum_k G_k A_k (4, 6): G is V[c] times the pixels of the region in each cell."""
    pixels = region.reshape(4, 2, 6, 2).sum(axis=(1, 3))
    return float((logits(x)[c] * region).sum()), np.tensordot(V[c], activations(x), 1) * pixels


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((2, 3, 8, 12)).astype(np.float32) * 2


def explainer(end: str = "logits", target: Segmentation | None = None, method: str = "hirescam", **more) -> Explainer:
    model = segmenter(end, more.pop("batch", "N"))
    return Explainer(model, method=method, target=target or Segmentation(), layer="a", threads=1, **more)


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("end", ENDS)
def test_the_class_is_summed_over_the_pixels_for_which_it_is_predicted(x: np.ndarray, end: str, batch: str) -> None:
    found = explainer(end, batch=batch).explain_tensor(x, [2, 1])
    for sample, c, one in zip(x, (2, 1), found, strict=True):
        l = logits(sample)  # noqa: E741
        region = l[c] > 0 if end == "sigmoid" else l.argmax(0) == c
        score, raw = expected(sample, c, region)
        assert one.class_index == c
        assert one.score == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(one.raw, raw, rtol=1e-4, atol=1e-5)
        shares = (l > 0).mean((1, 2)) if end == "sigmoid" else np.bincount(l.argmax(0).ravel(), minlength=3) / 96
        np.testing.assert_allclose(one.scores, shares, rtol=1e-6)


@pytest.mark.parametrize("end", ["logits", "channels last", "argmax"])
def test_a_mask_or_a_box_takes_the_place_of_the_prediction(x: np.ndarray, end: str) -> None:
    mask = np.random.default_rng(9).random((8, 12)) < 0.3
    box = np.zeros((8, 12), bool)
    box[2:7, 3:4] = True
    asked = [Segmentation(1, mask=mask), Segmentation(1, box=(3, 2, 4, 7))]
    for sample, region, one in zip(x, (mask, box), explainer(end).explain_tensor(x, asked), strict=True):
        score, raw = expected(sample, 1, region)
        assert one.score == pytest.approx(score, rel=1e-5)
        np.testing.assert_allclose(one.raw, raw, rtol=1e-4, atol=1e-5)


def test_several_masks_and_classes_of_one_picture_are_what_they_are_one_by_one(x: np.ndarray) -> None:
    masks = np.random.default_rng(9).random((3, 8, 12)) < 0.3
    asked = [Segmentation(c, mask=m) for c, m in zip((2, 0, 1), masks, strict=True)]
    together = explainer(method="gradcam").explain_targets(x[:1], asked)
    for target, one in zip(asked, together, strict=True):
        (alone,) = explainer(method="gradcam").explain_tensor(x[:1], target)
        np.testing.assert_allclose(one.raw, alone.raw, rtol=1e-5, atol=1e-6)
        assert (one.score, one.class_index) == (pytest.approx(alone.score), alone.class_index)


def test_the_class_on_most_pixels_is_predicted_but_the_background_only_where_there_is_no_other(x: np.ndarray) -> None:
    winners = logits(x[0]).argmax(0)
    counts = np.bincount(winners.ravel(), minlength=3)
    assert counts.tolist() == [12, 36, 48]
    assert explainer().explain_tensor(x[:1])[0].class_index == 2
    assert explainer(target=Segmentation(background=2)).explain_tensor(x[:1])[0].class_index == 1
    assert explainer(target=Segmentation(background=None)).explain_tensor(x[:1])[0].class_index == 2
    only = np.tile(np.array([1, -5, -5], np.float32).reshape(1, 3, 1, 1), (1, 1, 8, 12))
    assert set(logits(only[0]).argmax(0).ravel()) == {1}
    assert explainer(target=Segmentation(background=1)).explain_tensor(only)[0].class_index == 1


def test_methods_that_change_activations_keep_the_region_of_the_untouched_picture(x: np.ndarray) -> None:
    """Ablation-CAM: alpha_k = (y - y_k) / y over the same pixels, whatever would be predicted without channel k."""
    one = explainer(method="ablationcam").explain_tensor(x[:1], 2)[0]
    region, a = logits(x[0]).argmax(0) == 2, activations(x[0])
    y, parts = expected(x[0], 2, region)[0], (a * V[2].reshape(2, 1, 1)).repeat(2, 1).repeat(2, 2)
    alpha = np.array([(part * region).sum() for part in parts]) / y
    np.testing.assert_allclose(one.raw, np.tensordot(alpha, a, 1), rtol=1e-4)


def test_a_mask_of_the_picture_lies_where_the_picture_lies_in_a_letterbox() -> None:
    """A picture of 24 x 12 pixels stands in the middle of 8 x 12: columns 4 to 8 of the input, a third of its size."""
    picture = np.random.default_rng(3).integers(0, 256, (24, 12, 3)).astype(np.uint8)
    mask = np.zeros((24, 12), bool)
    mask[6:12, 3:9] = True
    letterboxed = explainer(preprocess={"fit": "letterbox"})
    tensor, view = letterboxed.preprocess(load_picture(picture))
    assert view.to_tensor([0, 0, 12, 24]).tolist() == [4, 0, 8, 8]
    inside = np.zeros((8, 12), bool)
    inside[2:4, 5:7] = True
    score, raw = expected(tensor[0], 1, inside)
    for target in (Segmentation(1, mask=mask), Segmentation(1, box=(3, 6, 9, 12))):
        one = letterboxed(picture, target)
        assert one.score == pytest.approx(score, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(one.raw, raw, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", ["a", "s", "l"])
def test_layers_behind_the_enlarging_are_explained_too(x: np.ndarray, layer: str) -> None:
    """At the logits themselves the map is the class's own scores in its region."""
    mask = np.random.default_rng(9).random((8, 12)) < 0.3
    asked = Segmentation(1, mask=mask)
    made = Explainer(segmenter(), method="hirescam", target=Segmentation(), layer=layer, threads=1)
    found, l = made.explain_tensor(x[:1], asked)[0], logits(x[0])  # noqa: E741
    per_cell = l[1] * mask if layer == "l" else (l[1] * mask).reshape(4, 2, 6, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(found.raw, per_cell, rtol=1e-4, atol=1e-5)
    assert found.score == pytest.approx(float((l[1] * mask).sum()), rel=1e-5)


@pytest.mark.parametrize("how", ["scales", "sizes", "sizes of the picture"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_one_class_is_enlarged_as_all_of_them_are(how: str, mode: str) -> None:
    """The same map as of the linear target, which enlarges all classes and goes back through all of them."""
    size = {
        "scales": "l = Resize<mode=\"MODE\">(s, , twice)",
        "sizes": "n = Shape<end=2>(s) t = Concat<axis=0>(n, out) l = Resize<mode=\"MODE\">(s, , , t)",
        "sizes of the picture": "n = Shape<end=2>(s) o = Shape<start=2>(x) t = Concat<axis=0>(n, o) "
                                "l = Resize<mode=\"MODE\">(s, , , t)",
    }[how].replace("MODE", mode)  # fmt: skip
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,2,8,8] y)
        <float[2,3,1,1] w = {{1, 0.5, -1, -2, 1, 0.25}}, float[4] twice = {{1, 1, 2, 2}}, int64[2] out = {{8, 8}}>
        {{ p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x) a = Relu(p) s = Conv(a, w) {size} y = Identity(l) }}
        """)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    mask = np.random.default_rng(9).random((8, 8)) < 0.3
    made = Explainer(model, method="hirescam", target=Segmentation(background=None), layer="a", threads=1)
    weights = np.stack([0 * mask, 1.0 * mask])
    linear = Explainer(model, method="hirescam", target=Linear({"y": weights}), layer="a", threads=1)
    asked = Segmentation(1, mask=mask)
    for one, other in zip(made.explain_tensor(x, asked), linear.explain_tensor(x), strict=True):
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-4, atol=1e-5)
        assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-5)
    graph, image, _ = open_graph(read(model))
    rewritten = explained_model(graph, image, target=asked, layer="a").model
    enlarged = [n.op_type for n in rewritten.graph.node if "/target/Resize" in n.name and ".vjp" not in n.name]
    assert enlarged == ["Resize"]  # the class alone is, and nothing but that is differentiated


def test_the_layer_is_the_last_one_before_the_classes_are_enlarged() -> None:
    made = Explainer(segmenter(), output="y", threads=1)
    assert made.layer == "a"
    assert "`y` taken for a segmentation of 3 classes in 8x12" in made.notes
    assert "class 0 taken for the background" in made.notes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Segmentation(1, mask=np.ones((12, 8))), "a mask of 12x8 for a picture of 8x12"),
        (Segmentation(1, mask=-np.ones((8, 12))), "negative weights"),
        (Segmentation(1, box=(0, 0, 13, 8)), r"\[0, 0, 13, 8\] is no part of a picture of 8x12"),
        (Segmentation(1, box=(3, 3, 3, 8)), "is no part of a picture"),
        (Segmentation(1, box=(0, 0, 1, 1), mask=np.ones((8, 12))), "a mask and a box"),
        (Segmentation(1, mask=np.zeros((8, 12))), "covers nothing"),
        (Segmentation(3), "class 3 does not exist: the model has 3 classes"),
    ],
)
def test_a_region_that_does_not_fit_the_picture_is_said(x: np.ndarray, asked: Segmentation, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        explainer().explain_tensor(x, asked)


def test_a_class_that_is_predicted_nowhere_is_said() -> None:
    only = np.tile(np.array([1, -5, -5], np.float32).reshape(1, 3, 1, 1), (1, 1, 8, 12))
    empty, whole = explainer().explain_tensor(np.repeat(only, 2, 0), [2, 1])
    assert empty.warnings == ("the map is empty: the class is predicted nowhere; name a region or a mask",)
    assert whole.warnings == ()


def test_a_model_without_a_map_of_scores_is_no_segmenter() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,3] y) { p = GlobalAveragePool(x) y = Flatten(p) }""")
    with pytest.raises(UnsupportedError, match=r"no output holds a score per class and pixel: `y` \['N', 3\]"):
        Explainer(model, target=Segmentation())


# Pictures that the network names right, and the class in it that is looked for.
PICTURES = {
    "coral_bird.bmp": "bird",
    "coral_cat.bmp": "cat",
    "coral_dog_test_0.bmp": "dog",
    "coral_bird_segmentation.bmp": "bird",
    "skimage_motorcycle_left.png": "motorbike",
}
VOC = {"bird": 3, "cat": 8, "dog": 12, "motorbike": 14}
MODELS = {
    "deeplabv3_mnv2_dm05_fp32_logits_nchw": {"scale": 1 / 127.5, "mean": (1, 1, 1), "std": (1, 1, 1), "fit": "squash"},
    "deeplabv3_mnv2_dm05_qdq_argmax_nhwc": {"fit": "squash"},
    "espnetv2_s1_voc256": {"fit": "squash"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_predicted_class_of_a_trained_segmenter_lights_its_object(name: str) -> None:
    """Energy inside the box: 0.74 on average for the two DeepLabs, 0.88 for ESPNet; its share of the picture: 0.57."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs ../shared/models")
    made = Explainer(SHARED / "models" / f"{name}.onnx", preprocess=MODELS[name], threads=2)
    boxes = json.loads((SHARED / "images" / "boxes.json").read_text("utf-8"))
    energies = []
    for file, label in PICTURES.items():
        one = made(SHARED / "images" / file)
        assert one.class_index == VOC[label], file
        x0, y0, x1, y1 = boxes[file]["objects"][0]["box_xyxy"]
        energies.append(one.values[y0:y1, x0:x1].sum() / one.values.sum())
    assert np.mean(energies) > 0.7


def test_a_map_with_the_channels_of_a_picture_may_be_one_and_is_explained_when_named() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Relu(x) y = Sub(x, a) }""")
    with pytest.raises(UnsupportedError, match="no output holds one score per class, or per class and pixel") as error:
        Explainer(model)
    assert "--class-output NAME" in error.value.hint
    assert Explainer(model, output="y", layer="a").classes == 3


def test_a_segmenter_that_says_nothing_of_its_pictures_sees_all_of_them() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,2,8,8] out) <float[2,3,1,1] w = {1, 0, 0, 0, 1, 0}>
        { a = Relu(x) out = Conv(a, w) }""")
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 70:, 1] = 255  # class 1, where a centre crop would cut it off
    one = Explainer(model, layer="a", target=Segmentation(background=None))(picture, 1)
    assert not one.is_empty and one.peak[0] >= 70
    cropped = Explainer(model, layer="a", preprocess={"fit": "crop"})
    assert cropped.preprocess.fit == "crop"
    assert Explainer(model, layer="a", preprocess={"crop_pct": 0.5}).preprocess.fit == "crop"


def test_the_first_of_several_maps_of_one_shape_is_taken_and_another_may_be_named() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,2,8,8] out, float[N,2,8,8] aux) <float[2,3,1,1] w = {1, 0, 0, 0, 1, 0}>
        { a = Relu(x) out = Conv(a, w) aux = Neg(out) }""")
    assert "`out` taken for a segmentation of 2 classes in 8x8" in Explainer(model).notes
    assert "`aux` taken for a segmentation of 2 classes in 8x8" in Explainer(model, output="aux").notes


def test_a_trained_unet_whose_pixels_may_be_of_several_classes_lights_the_region_that_it_predicts() -> None:
    """Energy inside the choroid, 6 % of the scan: 0.60 at the automatic layer, 0.12 at the bottleneck."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs ../shared/models")
    gray = {"scale": 1 / 127.5, "mean": (1,), "std": (1,), "fit": "squash", "channels": "gray"}
    model, scan = SHARED / "models" / "choroidalyzer_oct_unet.onnx", SHARED / "images" / "oct_choroid_image1.png"
    made = Explainer(model, target=Segmentation(multi_label=True), preprocess=gray, threads=2)
    one = made(scan)
    region = made.outputs(made.preprocess(load_picture(scan))[0])["conv2d_37"][0, 0] > 0
    assert (one.class_index, one.raw.shape) == (0, (48, 48))
    assert one.scores[0] == pytest.approx(region.mean(), rel=1e-5)
    assert one.values[region].sum() > 0.5 * one.values.sum()
