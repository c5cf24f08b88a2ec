"""Detectors from the file to the map of a box: recognised, decoded, explained; bad input."""

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from heads import CLASSES, HEADS, SIDE, Net, detr, nms, ssd, yolov8, yolox
from onnx import ModelProto

from onnxcam import Detector, Picture, Preprocess, load_picture
from onnxcam.detection import KINDS, BoxExplanation, looks_like_detector
from onnxcam.detection.decode import EndToEnd
from onnxcam.detection.neck import shared_map
from onnxcam.detection.recognise import recognised
from onnxcam.errors import OnnxCamError, UnsupportedError, UsageError
from onnxcam.explained import open_graph
from onnxcam.graph.read import read

PICTURE = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
# The seeded heads are made for numbers of about 1.
UNIT = {"scale": 1 / 255, "mean": [0.0], "std": [1.0]}


@cache
def model(name: str) -> ModelProto:
    return HEADS[name][1]()


def detector(name: str, **options: object) -> Detector:
    settings = {"threshold": 0.0, "threads": 1, "method": "hirescam", "preprocess": UNIT, "max_boxes": 3} | options
    return Detector(model(name), **settings)  # type: ignore[arg-type]


CLASSES_OF = {"nanodet": 40, "ultraface": 1, "yunet": 1, "yolov10": 0, "boxes": 0, "rtdetr, chosen": 0}


@pytest.mark.parametrize("name", HEADS)
def test_the_kind_and_the_classes_are_recognised(name: str) -> None:
    graph, _, size = open_graph(read(model(name)))
    found = recognised(graph, size)
    assert found.kind == HEADS[name][0]
    assert found.layout.classes == CLASSES_OF.get(name, CLASSES)
    assert looks_like_detector(model(name))


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _ in HEADS.values()} == set(KINDS)


@pytest.mark.parametrize("name", HEADS)
def test_the_layer_is_the_last_that_all_levels_come_from(name: str) -> None:
    """The finest map of the backbone: the next is pooled from it, and the finest level reads it and that."""
    graph, image, size = open_graph(read(model(name)))
    values = recognised(graph, size).layout.values
    assert shared_map(graph, values, image.name, size) == "Relu_1_0"


def test_heads_that_read_one_map_are_explained_at_it() -> None:
    net = Net(levels=1)
    net.maps[0] = net.Relu(net.conv(net.maps[0], 8, 8))
    net.output(net.rows(net.conv(net.maps[0], 8, bias=0.0), 8), "output")
    graph, image, size = open_graph(read(net.model()))
    assert shared_map(graph, ["output"], image.name, size) == net.maps[0]


def rows_at(d: Detector, x: np.ndarray) -> np.ndarray:
    return d._layout.of(d.explainer.outputs(x))[1]


def class_scalar(d: Detector, rows: np.ndarray, anchor: int, label: int) -> float:
    """The sum of the logits of what multiplies to the score; the score, where it is gathered behind its sigmoid."""
    factors = rows[anchor, list(d._layout.factors(label))]
    if isinstance(d._layout, EndToEnd) or d._layout.is_raw:
        return float(factors.sum())
    if d.kind == "ssd":  # a softmax's logits are known but for a constant: the head's own are looked at elsewhere
        return float("nan")
    return float(np.log(factors / (1 - factors)).sum())


@pytest.mark.parametrize("name", [n for n in HEADS if n != "ssd"])
def test_the_explained_score_is_the_sum_of_the_logits_of_its_factors(name: str) -> None:
    d = detector(name)
    (explanation,) = d.explain_boxes(PICTURE, [1])
    (box,) = explanation.boxes
    x, _ = d.explainer.preprocess(_picture())
    assert explanation.score == pytest.approx(class_scalar(d, rows_at(d, x), box.anchor, box.class_index), rel=1e-4)


def test_a_softmax_is_stepped_over() -> None:
    session = ort.InferenceSession(_with_logits(model("ssd")).SerializeToString())
    d = detector("ssd")
    (explanation,) = d.explain_boxes(PICTURE, [0])
    (box,) = explanation.boxes
    x, _ = d.explainer.preprocess(_picture())
    logits = session.run([_SOFTMAX], {"x": x})[0][0]
    assert explanation.score == pytest.approx(float(logits[box.anchor, box.class_index + 1]), rel=1e-4)


_SOFTMAX = next(n.input[0] for n in ssd().graph.node if n.op_type == "Softmax")


def _with_logits(proto: ModelProto) -> ModelProto:
    wider = ModelProto()
    wider.CopyFrom(proto)
    wider.graph.output.add(name=_SOFTMAX)
    return wider


def _picture() -> Picture:
    return load_picture(PICTURE)


@pytest.mark.parametrize(
    ("name", "box_score"), [*((n, s) for n in HEADS for s in ("class", "coordinates")), ("yolox", "right")]
)
def test_a_map_sums_to_the_derivative_by_the_layers_strength(name: str, box_score: str) -> None:
    """All maps are homogeneous in the picture, so that sum G A at the layer is what the scalar changes by, per share
    by which the picture grows: central differences of decoding the model's own outputs."""
    d = detector(name, box_score=box_score)
    (explanation,) = d.explain_boxes(PICTURE, [0])
    (box,) = explanation.boxes
    x, _ = d.explainer.preprocess(_picture())

    def value(factor: float) -> float:
        rows = rows_at(d, (x * factor).astype(np.float32))
        if box_score == "class":
            if d.kind == "ssd":
                outputs = ort.InferenceSession(_with_logits(model(name)).SerializeToString()).run(
                    [_SOFTMAX], {"x": (x * factor).astype(np.float32)}
                )
                return float(outputs[0][0, box.anchor, box.class_index + 1])
            return class_scalar(d, rows, box.anchor, box.class_index)
        x0, y0, x1, y1 = d._layout.boxes(rows, d._layout.places(rows))[box.anchor]
        return float(x1 if box_score == "right" else (x1 - x0) + (y1 - y0))

    expected = (value(1.01) - value(0.99)) / 0.02
    assert abs(expected) > 1e-3
    assert float(explanation.raw.sum()) == pytest.approx(expected, rel=5e-3)


def squares(side: int = 64, **options: str) -> Detector:
    """Finds red cells of 8x8: objectness 1 / (1 + exp(10 - 20 red)), class 0, the box is the cell."""
    net = Net(side, levels=0)
    red = np.zeros((1, 3, 8, 8), np.float32)
    red[0, 0] = 1 / 64
    net.maps = [net.Relu(net.Conv("x", net.constant(red), strides=[8, 8]))]
    parts = []
    for weight, bias in (([0, 0, 0, 0], [0.5, 0.5, 0, 0]), ([20], [-10]), ([0, 0], [10, -10])):
        w = net.constant(np.array(weight, np.float32).reshape(-1, 1, 1, 1))
        head = net.Conv(net.maps[0], w, net.constant(np.array(bias, np.float32)))
        parts.append(head if len(weight) == 4 else net.Sigmoid(head))
    net.output(net.Transpose(net.reshape(net.Concat(*parts, axis=1), 1, 7, -1), perm=[0, 2, 1]), "output")
    settings = Preprocess((side, side), fit="letterbox", pad=0)
    return Detector(net.model(), kind="yolox", preprocess=settings, labels=["square", "none"], threads=1, **options)


@pytest.mark.parametrize("enlarged", [1, 2, 4])
def test_boxes_are_in_picture_pixels_whatever_the_letterbox(enlarged: int) -> None:
    """The 64x32 picture lies on rows 16 to 48 of the tensor; enlarged, its pixels shrink again."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[8:16, 24:32, 0] = 255
    picture = picture.repeat(enlarged, 0).repeat(enlarged, 1)
    d = squares()
    (box,) = d.detect(picture)
    assert box.xyxy == pytest.approx([24 * enlarged, 8 * enlarged, 32 * enlarged, 16 * enlarged])
    assert (box.name, box.class_index, box.index) == ("square", 0, 0)
    assert box.score == pytest.approx((1 / (1 + np.exp(-10))) ** 2, rel=1e-3)  # resized
    explanation = d(picture)
    y, x = np.unravel_index(explanation.raw.argmax(), explanation.raw.shape)
    assert (x, y) == (3, 3) and np.count_nonzero(explanation.raw) == 1
    assert 24 * enlarged <= explanation.peak[0] < 32 * enlarged and 8 * enlarged <= explanation.peak[1] < 16 * enlarged


def two_squares() -> np.ndarray:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[8:16, 8:16, 0] = 255
    picture[40:48, 48:56, 0] = 230
    return picture


def test_a_map_is_of_its_box_and_not_of_the_other_box_of_its_class() -> None:
    d = squares()
    first, second = d.explain_boxes(two_squares())
    assert (first.boxes[0].xyxy, second.boxes[0].xyxy) == ((8, 8, 16, 16), (48, 40, 56, 48))
    for explanation, other in ((first, (44, 52)), (second, (12, 12))):
        x0, y0, x1, y1 = (int(v) for v in explanation.boxes[0].xyxy)
        assert explanation.values[y0:y1, x0:x1].max() == pytest.approx(1)
        assert explanation.values[other] == 0


def test_without_an_index_all_boxes_share_one_map_each_at_its_own_peak() -> None:
    d = squares()
    both = d(two_squares())
    each = d.explain_boxes(two_squares())
    assert both.values == pytest.approx(np.maximum(each[0].values, each[1].values))
    assert both.values[12, 12] == pytest.approx(both.values[44, 52])
    assert [box.index for box in both.boxes] == [0, 1] and both.label == "2 boxes" and both.class_index == -1
    assert d(two_squares(), 1).values == pytest.approx(each[1].values)
    assert d(two_squares(), [1, 0]).values == pytest.approx(both.values)


def test_boxes_of_several_runs_of_the_head_share_one_map_too() -> None:
    d = detector("yolov8", max_boxes=40, iou=1.0)
    together, each = d(PICTURE), d.explain_boxes(PICTURE)
    assert len(each) == 40 > 2 * 16
    np.testing.assert_array_equal(together.values, np.max([e.values / e.values.max() for e in each], axis=0))
    assert together.boxes == tuple(e.boxes[0] for e in each) and len(together.raws) == 40


def test_a_box_costs_one_run_of_the_model_beside_the_one_that_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    d, runs = squares(), []
    monkeypatch.setitem(vars(d.explainer), "_target_head", None)  # else the second run ends at the layer
    run = d.explainer._run
    monkeypatch.setattr(d.explainer, "_run", lambda *args, **more: runs.append(1) or run(*args, **more))
    d(two_squares(), 0)
    assert len(runs) == 2


def test_inside_scales_each_map_in_its_box_and_leaves_nothing_outside() -> None:
    d = squares()
    explanation = d(two_squares(), 0, inside=True)
    inner = explanation.values[8:16, 8:16]
    assert (inner.min(), inner.max()) == (0, 1)
    assert np.count_nonzero(explanation.values) == np.count_nonzero(inner)
    plain = d(two_squares(), 0).values[8:16, 8:16]
    assert inner == pytest.approx((plain - plain.min()) / (plain.max() - plain.min()))


@pytest.mark.parametrize("method", ["saliency", "occlusion"])
def test_methods_of_pixels_and_of_many_runs_explain_a_box_too(method: str) -> None:
    picture = two_squares()
    explanation = squares(method=method)(picture, 1)
    x, y = explanation.peak
    assert 48 <= x < 56 and 40 <= y < 48
    assert explanation.values[8:16, 8:16].max() < 0.1


def test_both_is_the_mean_of_class_and_coordinates() -> None:
    maps = {s: detector("yolov8", box_score=s).explain_boxes(PICTURE, [0])[0].values for s in ("class", "coordinates")}
    both = detector("yolov8", box_score="both").explain_boxes(PICTURE, [0])[0].values
    assert both == pytest.approx((maps["class"] + maps["coordinates"]) / 2, abs=1e-6)
    assert np.abs(maps["class"] - maps["coordinates"]).max() > 0.1


def test_best_anchors_together_are_the_sum_of_their_maps() -> None:
    """252 anchors, the best hundredth: 2. Their boxes are not suppressed."""
    d = detector("yolov5", iou=1.0, max_boxes=2)
    together = d.explain_anchors(PICTURE, ratio=0.01)
    each = d.explain_boxes(PICTURE)
    assert together.label == "2 anchors"
    assert together.provenance["target"]["anchors"] == [e.boxes[0].anchor for e in each]
    assert together.raw == pytest.approx(each[0].raw + each[1].raw, rel=1e-3, abs=1e-5)


def test_best_anchors_end_at_the_threshold() -> None:
    d = squares()
    assert d.explain_anchors(two_squares(), ratio=1.0).label == "2 anchors"


def test_the_models_own_thresholds_hold_where_nothing_else_is_asked() -> None:
    d = Detector(nms(), threads=1)
    assert (d.threshold, d.iou) == pytest.approx((0.3, 0.4))
    assert Detector(nms(), threshold=0.6, iou=0.1, threads=1).threshold == 0.6


def test_what_suppression_on_the_host_keeps_is_what_the_models_own_keeps() -> None:
    d = Detector(nms(), threads=1, preprocess=UNIT)
    x, view = d.explainer.preprocess(_picture())
    own = ort.InferenceSession(nms().SerializeToString()).run(["boxes", "selected"], {"x": x})
    # Ours gives an anchor its best class alone; the model's own lists it once per class.
    found = {(box.class_index, box.anchor) for box in d.detect(PICTURE)}
    assert found <= {(int(c), int(a)) for _, c, a in own[1]}
    boxes = {(int(c), int(a)): view.to_picture(b) for (_, c, a), b in zip(own[1], own[0], strict=True)}
    assert len(found) > 1
    for box in d.detect(PICTURE):
        assert box.xyxy == pytest.approx(boxes[box.class_index, box.anchor], abs=1e-3)


def test_boxes_that_the_model_chose_are_listed_as_it_gives_them() -> None:
    d = detector("boxes", max_boxes=100)
    x, view = d.explainer.preprocess(_picture())
    corners, scores, labels = ort.InferenceSession(model("boxes").SerializeToString()).run(None, {"x": x})
    found = d.detect(PICTURE)
    assert len(found) == len(scores) > 3
    order = np.argsort(-scores, kind="stable")
    assert [b.score for b in found] == pytest.approx(scores[order].tolist())
    assert [b.class_index for b in found] == labels[order].tolist()
    assert [b.xyxy for b in found] == [pytest.approx(view.to_picture(c).tolist(), abs=1e-3) for c in corners[order]]


@pytest.mark.parametrize(("name", "copied"), [("yolov8", False), ("yolov5", True)])
def test_one_run_of_the_head_for_many_boxes_gives_the_maps_of_runs_alone(name: str, copied: bool) -> None:
    """About one value where the head broadcasts it to the questions, else about copies of it."""
    d = detector(name, max_boxes=5)
    together = d.explain_boxes(PICTURE)
    assert len(together) > 1
    assert d.explainer._target_head is not None and d.explainer._target_head.copied == copied
    for explanation in together:
        (alone,) = d.explain_boxes(PICTURE, [explanation.boxes[0].index])
        assert explanation.raw == pytest.approx(alone.raw, rel=1e-4, abs=1e-6)


def test_ultralytics_metadata_names_classes_and_size() -> None:
    """The two names leave a third column of v8's head to masks or key points."""
    d = Detector(yolov8(names="{0: 'cat', 1: 'dog'}", imgsz=f"[{SIDE}, {SIDE}]", stride="32", task="detect"), threads=1)
    assert d.labels == ("cat", "dog") and d.classes == 2
    assert "Ultralytics" in d.explainer._preprocess_source


def test_each_kind_has_the_preprocessing_of_its_reference() -> None:
    settings = Detector(yolox(), threads=1).explainer.preprocess
    assert (settings.fit, settings.channels, settings.scale, settings.mean) == ("letterbox", "bgr", 1.0, (0.0,))
    settings = Detector(yolov8(), threads=1).explainer.preprocess
    assert (settings.fit, settings.channels, settings.scale, settings.pad) == ("letterbox", "rgb", 1 / 255, 114)
    settings = Detector(yolov8(), preprocess={"fit": "squash"}, threads=1).explainer.preprocess
    assert (settings.fit, settings.scale, settings.mean) == ("squash", 1 / 255, (0.0,))


def test_eighty_classes_without_names_are_called_cocos_and_it_is_said() -> None:
    net = Net(levels=1)
    raw = net.conv(net.maps[0], 85, bias=0.0)
    net.output(net.Transpose(net.reshape(net.Sigmoid(raw), 1, 85, -1), perm=[0, 2, 1]), "output")
    d = Detector(net.model(), kind="yolov5", threads=1)
    assert d.labels is not None and (d.labels[0], d.labels[16], d.labels[79]) == ("person", "dog", "toothbrush")
    assert "labels: COCO's 80, since the model names none" in d.notes


def test_the_record_is_plain_json_and_holds_the_boxes() -> None:
    record = json.loads(json.dumps(squares()(two_squares(), 1).record(), allow_nan=False))
    assert [b["index"] for b in record["boxes"]] == [1] and [b["index"] for b in record["detected"]] == [0, 1]
    assert record["boxes"][0] | {"score": None} == {
        "index": 1, "class_index": 0, "label": "square", "score": None, "xyxy": [48, 40, 56, 48], "anchor": 5 * 8 + 6,
        "peak": [51, 43],
    }  # fmt: skip
    assert record["provenance"]["detector"]["kind"] == "yolox"
    assert record["probability"] == record["boxes"][0]["score"]


Call = Callable[[], object]
BLACK = np.zeros((64, 64, 3), np.uint8)
BAD: dict[str, tuple[Call, type[OnnxCamError], str, str]] = {
    "box that does not exist": (
        lambda: squares()(two_squares(), 2), UsageError,
        "box 2 does not exist: 2 were found: 0 `square`, 1 `square`", "choose",
    ),
    "negative box": (lambda: squares()(two_squares(), -1), UsageError, "box -1 does not exist", "choose"),
    "box of an empty picture": (
        lambda: squares()(BLACK, 0), UsageError, "box 0 does not exist: none was found", "",
    ),
    "empty picture": (
        lambda: squares()(BLACK), UsageError, "no box scores 0.25 or more: the best is `square`", "lower",
    ),
    "no anchors": (
        lambda: squares().explain_anchors(BLACK), UsageError, "no anchor scores 0.25", "lower",
    ),
    "ratio": (lambda: squares().explain_anchors(two_squares(), 0), UsageError, "ratio 0 is outside (0, 1]", "0.02"),
    "anchors of edges": (
        lambda: detector("yolov8", box_score="left").explain_anchors(PICTURE), UsageError, "no `left`", "class",
    ),
    "unknown kind": (lambda: Detector(yolov8(), kind="yolo"), UsageError, "unknown detector `yolo`", "yolov8"),
    "another kind": (
        lambda: Detector(detr(120), kind="yunet"), UnsupportedError,
        "no detector's that onnxcam knows as `yunet`: `logits` [1, 120, 3]", "KIND",
    ),
    "score": (lambda: Detector(yolov8(), box_score="area"), UsageError, "unknown box score `area`", "coordinates"),
    "threshold": (lambda: Detector(yolov8(), threshold=25), UsageError, "threshold 25 is outside [0, 1]", "0.25"),
    "iou": (lambda: Detector(yolov8(), iou=-0.1), UsageError, "iou -0.1 is outside [0, 1]", "0.45"),
    "boxes at most": (lambda: Detector(yolov8(), max_boxes=0), UsageError, "0 boxes at most", "1 or more"),
    "offsets without anchors": (
        lambda: Detector(ssd(False)), UnsupportedError, "`boxes` holds offsets from 168 anchors", "--anchors",
    ),
    "anchors of another number": (
        lambda: Detector(ssd(False), anchors=np.ones((5, 4))), UsageError,
        "anchors of shape [5, 4], but `boxes` holds 168", "[168, 4]",
    ),
    "class target": (
        lambda: squares().explainer(two_squares(), "square"), UsageError, "`square` is no box", "explain_boxes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name: str) -> None:
    call, kind, message, hint = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    assert message in caught.value.message and hint in caught.value.hint


def test_offsets_with_anchors_are_decoded() -> None:
    anchors = np.tile([32.0, 32, 10, 20], (168, 1))
    d = Detector(ssd(False), anchors=anchors, threshold=0.0, threads=1, preprocess={**UNIT, "fit": "squash"})
    x, _ = d.explainer.preprocess(_picture())
    raw = ort.InferenceSession(ssd(False).SerializeToString()).run(["boxes"], {"x": x})[0][0]
    box = d.detect(PICTURE)[0]
    dx, dy, dw, dh = (float(v) for v in raw[box.anchor])
    cx, cy, w, h = 32 + dx, 32 + 2 * dy, 10 * np.exp(dw / 5), 20 * np.exp(dh / 5)
    scale = np.array([80 / 64, 48 / 64] * 2)
    assert box.xyxy == pytest.approx(np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * scale, rel=1e-4)


def test_a_classifier_is_no_detector() -> None:
    net = Net(levels=1)
    net.output(net.Flatten(net.GlobalAveragePool(net.maps[0]), axis=1), "y", rank=2)
    assert not looks_like_detector(net.model())
    with pytest.raises(UnsupportedError, match="no detector's"):
        Detector(net.model())


def test_a_segmenter_is_no_detector() -> None:
    net = Net(levels=1)
    net.output(net.conv(net.maps[0], 5), "y", rank=4)
    assert not looks_like_detector(net.model())


@pytest.mark.parametrize("classes", [0, 10])
def test_the_tokens_of_a_transformer_are_no_boxes(classes: int) -> None:
    """64 rows of 24 numbers, as many as cells of stride 8; with class scores beside them or not."""
    net = Net(levels=1)
    tokens = net.Transpose(net.reshape(net.conv(net.maps[0], 24), 1, 24, -1), perm=[0, 2, 1])
    gate = net.Sigmoid(tokens)
    tokens = net.Mul(tokens, gate)
    if classes:
        head = net.constant(np.ones((24, classes), np.float32))
        net.output(
            net.MatMul(net.ReduceMean(tokens, net.constant(np.array([1], np.int64)), keepdims=0), head), "y", rank=2
        )
    net.output(tokens, "last_hidden_state")
    assert not looks_like_detector(net.model())


def test_tokens_beside_class_scores_are_no_boxes_even_behind_a_sigmoid() -> None:
    net = Net(levels=1)
    tokens = net.Sigmoid(net.Transpose(net.reshape(net.conv(net.maps[0], 24), 1, 24, -1), perm=[0, 2, 1]))
    net.output(tokens, "attention")
    assert looks_like_detector(net.model())
    net.output(net.ReduceMean(tokens, net.constant(np.array([1], np.int64)), keepdims=0), "y", rank=2)
    assert not looks_like_detector(net.model())


def test_a_detector_without_sigmoid_has_one_put_behind_it() -> None:
    """The same head with and without its sigmoid: the same boxes, scores and maps."""
    found: list[BoxExplanation] = []
    for active in (True, False):
        net = Net(levels=1)
        raw = net.conv(net.maps[0], 4 + CLASSES, bias=0.1)
        split = net.constant(np.array([4, CLASSES], np.int64))
        box, classes = net.Split(raw, split, outputs=2, axis=1)
        box = net.Mul(box, net.constant(np.float32([20])))
        classes = net.Sigmoid(classes) if active else classes
        net.output(net.reshape(net.Concat(box, classes, axis=1), 1, 4 + CLASSES, -1), "output0")
        d = Detector(net.model(), kind="yolov8", threshold=0.0, threads=1, method="hirescam")
        found.append(d.explain_boxes(PICTURE, [0])[0])
    with_sigmoid, without = found
    assert with_sigmoid.boxes[0].score == pytest.approx(without.boxes[0].score, rel=1e-5)
    assert with_sigmoid.raw == pytest.approx(without.raw, rel=1e-5)


def test_a_file_of_open_size_gets_640_unless_asked() -> None:
    net = Net(levels=1)
    net.side = None  # type: ignore[assignment]
    raw = net.conv(net.maps[0], 4 + CLASSES, bias=0.1)
    net.output(net.reshape(net.Sigmoid(raw), 1, 4 + CLASSES, -1), "output0")
    assert looks_like_detector(net.model())
    assert Detector(net.model(), kind="yolov8", threads=1).explainer.preprocess.size == (640, 640)
    assert Detector(net.model(), kind="yolov8", threads=1, size=(64, 96)).explainer.preprocess.size == (64, 96)
