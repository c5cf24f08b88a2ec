"""Every layout decoded by hand, and the derivatives of what is decoded against central differences."""

from collections.abc import Callable

import numpy as np
import pytest

from onnxcam.detection.decode import (
    EndToEnd,
    HeadLayout,
    Levels,
    NanoDet,
    Queries,
    ScoresAndBoxes,
    Yolo,
    YoloX,
    YuNet,
    cells,
    derivative,
    retinanet_anchors,
    strides_for,
    ultraface_anchors,
)

SIZE = (32, 64)  # grids of 4x8, 2x4 and 1x2 cells with strides of 8, 16 and 32: 42 cells
SMALL = (8, 16, 32)


def decoded(layout: HeadLayout, *outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = layout.rows([np.asarray(o, float) for o in outputs])
    return layout.boxes(rows, layout.places(rows)), layout.scores(rows)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_cells_are_counted_per_stride_and_rounded_up() -> None:
    assert cells(SIZE, SMALL) == 32 + 8 + 2
    assert cells((33, 65), (32,)) == 2 * 3
    assert list(strides_for(SIZE, 42, (1, 3))) == [(SMALL, 1)]
    assert list(strides_for(SIZE, 126, (1, 3))) == [(SMALL, 3)]


def test_yolov5_has_centre_and_size_in_pixels_and_objectness_times_class() -> None:
    rows = np.zeros((42, 7))
    rows[5] = [20, 10, 8, 4, 0.5, 0.4, 0.8]
    boxes, scores = decoded(Yolo(("o",), ((42, 7),), SIZE, 2, True, False), rows)
    assert boxes[5].tolist() == [16, 8, 24, 12]
    assert scores[5] == pytest.approx([0.2, 0.4])


def test_yolov8_has_its_axes_swapped_and_no_objectness() -> None:
    table = np.zeros((6, 42))
    table[:, 7] = [20, 10, 8, 4, 0.4, 0.8]
    boxes, scores = decoded(Yolo(("o",), ((6, 42),), SIZE, 2, False, True), table)
    assert boxes[7].tolist() == [16, 8, 24, 12]
    assert scores[7] == pytest.approx([0.4, 0.8])


def test_columns_behind_the_classes_are_left_alone() -> None:
    table = np.zeros((6 + 32, 42))
    table[:, 0] = 9
    table[4:6, 0] = [0.4, 0.8]
    assert decoded(Yolo(("o",), ((38, 42),), SIZE, 2, False, True), table)[1].shape == (42, 2)


def test_logits_of_a_head_without_sigmoid_get_one() -> None:
    rows = np.zeros((42, 6))
    rows[3, 4:] = [logit(0.5), logit(0.8)]
    assert decoded(Yolo(("o",), ((42, 6),), SIZE, 1, True, False, True), rows)[1][3] == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("anchor", "x", "y", "stride"), [(0, 0, 0, 8), (9, 1, 1, 8), (32 + 5, 1, 1, 16), (40 + 1, 1, 0, 32)]
)
def test_yolox_counts_strides_from_each_cell(anchor: int, x: int, y: int, stride: int) -> None:
    rows = np.zeros((42, 6))
    rows[anchor] = [0.25, 0.5, np.log(2), np.log(0.5), 0.5, 0.6]
    boxes, scores = decoded(YoloX(("o",), ((42, 6),), SIZE, 1, True, False), rows)
    cx, cy = (x + 0.25) * stride, (y + 0.5) * stride
    assert boxes[anchor] == pytest.approx([cx - stride, cy - stride / 4, cx + stride, cy + stride / 4])
    assert scores[anchor] == pytest.approx([0.3])


@pytest.mark.parametrize(("strides", "middle"), [((8, 16, 32), 0.5), ((8, 16, 32, 64), 0.0)])
def test_nanodet_expects_a_distance_per_side(strides: tuple[int, ...], middle: float) -> None:
    count = cells(SIZE, strides)
    rows = np.full((count, 2 + 4 * 8), -50.0)
    rows[:, :2] = [0.3, 0.7]
    for side, (first, second) in enumerate([(1, 1), (0, 1), (2, 4), (7, 7)]):  # distances 1, 0.5, 3, 7
        rows[9, 2 + side * 8 + first] = 0
        rows[9, 2 + side * 8 + second] = 0
    boxes, scores = decoded(NanoDet(("o",), ((count, 34),), SIZE, 2, strides, False), rows)
    x = y = 1 + middle
    assert boxes[9] == pytest.approx([(x - 1) * 8, (y - 0.5) * 8, (x + 3) * 8, (y + 7) * 8])
    assert scores[9] == pytest.approx([0.3, 0.7])


def test_ssd_shares_of_the_picture_become_pixels_and_pixels_stay() -> None:
    layout = ScoresAndBoxes(("s", "b"), ((3, 3), (3, 4)), SIZE, 2, "first")
    scores = np.array([[0.1, 0.2, 0.7]] * 3)
    shares = np.array([[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1], [0, 0, 0.1, 0.1]])
    boxes, found = decoded(layout, scores, shares)
    assert boxes[0].tolist() == [16, 16, 32, 32]
    assert found[0] == pytest.approx([0.2, 0.7])
    assert decoded(layout, scores, shares * 32)[0][0].tolist() == [8, 16, 16, 32]


def test_ssd_offsets_are_of_anchors_with_variances() -> None:
    anchors = np.array([[10.0, 20, 8, 4]])
    layout = ScoresAndBoxes(("s", "b"), ((1, 3), (1, 4)), SIZE, 2, "first", "softmax", anchors)
    boxes, scores = decoded(layout, np.log([[0.1, 0.2, 0.7]]), [[5, -5, 5 * np.log(2), 0]])
    assert boxes[0] == pytest.approx([14 - 8, 18 - 2, 14 + 8, 18 + 2])  # 10 + 5 * 0.1 * 8, 20 - 5 * 0.1 * 4
    assert scores[0] == pytest.approx([0.2, 0.7])


def test_nms_boxes_have_y_first_where_tensorflow_made_them_and_scores_a_row_per_class() -> None:
    scores, boxes = np.array([[0.1, 0.2], [0.3, 0.9]]), np.array([[2.0, 1, 20, 10], [5, 5, 6, 6]])
    layout = ScoresAndBoxes(("s", "b"), ((2, 2), (2, 4)), SIZE, 2, None, yx=True, swapped=True)
    found, confidence = decoded(layout, scores, boxes)
    assert found[0].tolist() == [1, 2, 10, 20]
    assert confidence.tolist() == [[0.1, 0.3], [0.2, 0.9]]


def test_detr_has_shares_by_centre_and_a_last_class_for_none() -> None:
    layout = ScoresAndBoxes(("s", "b"), ((1, 3), (1, 4)), SIZE, 2, "last", "softmax", centres=True, single=True)
    boxes, scores = decoded(layout, np.log([[0.2, 0.7, 0.1]]), [[0.5, 0.5, 0.25, 0.5]])
    assert boxes[0].tolist() == [24, 8, 40, 24]
    assert scores[0] == pytest.approx([0.2, 0.7])
    assert not layout.suppresses


def test_yunet_scores_the_root_of_class_times_objectness() -> None:
    shapes = [(n, w) for w in (1, 1, 4) for n in (32, 8, 2)]
    outputs = [np.zeros(s) for s in shapes]
    outputs[1][5], outputs[4][5], outputs[7][5] = 0.9, 0.4, [0.25, 0.5, np.log(2), 0]
    layout = YuNet(tuple("abcdefghi"), tuple(shapes), SIZE, 1, SMALL)
    boxes, scores = decoded(layout, *outputs)
    assert scores[32 + 5] == pytest.approx([0.6])
    assert boxes[32 + 5] == pytest.approx([1.25 * 16 - 16, 1.5 * 16 - 8, 1.25 * 16 + 16, 1.5 * 16 + 8])


def test_yolov10_says_box_score_and_class_itself() -> None:
    layout = EndToEnd(("o",), ((2, 6),), SIZE, 0)
    table = np.array([[1.0, 2, 30, 40, 0.9, 5], [0, 0, 1, 1, 0.1, 2]])
    labels, scores = layout.best(layout.rows([table]))
    assert decoded(layout, table)[0][0].tolist() == [1, 2, 30, 40]
    assert labels.tolist() == [5, 2] and scores.tolist() == [0.9, 0.1]


@pytest.mark.parametrize("chosen", [True, False])
def test_rtdetr_has_shares_by_centre(chosen: bool) -> None:
    row = [0.5, 0.5, 0.25, 0.5, 0.9, 1.0] if chosen else [0.5, 0.5, 0.25, 0.5, 0.1, 0.9]
    layout = (
        EndToEnd(("o",), ((1, 6),), SIZE, 2, centres=True)
        if chosen
        else Queries(("o",), ((1, 6),), SIZE, 2, False, False)
    )
    table = np.array([row])
    labels, scores = layout.best(layout.rows([table]))
    assert decoded(layout, table)[0][0].tolist() == [24, 8, 40, 24]
    assert (labels.tolist(), scores.tolist()) == ([1], [0.9]) and not layout.suppresses


def test_retinanet_anchors_are_torchvisions() -> None:
    """AnchorGenerator(((32, 40, 50), ...), ((0.5, 1, 2),) * 5) of torchvision 0.28, two cells of a 64x64 picture."""
    anchors = retinanet_anchors((64, 64))
    assert len(anchors) == 9 * (64 + 16 + 4 + 1 + 1)
    corners = np.concatenate([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], 1)
    assert corners[:9].tolist() == [
        [-23, -11, 23, 11], [-28, -14, 28, 14], [-35, -18, 35, 18],
        [-16, -16, 16, 16], [-20, -20, 20, 20], [-25, -25, 25, 25],
        [-11, -23, 11, 23], [-14, -28, 14, 28], [-18, -35, 18, 35],
    ]  # fmt: skip
    assert corners[9].tolist() == [-15, -11, 31, 11]


def test_retinanet_levels_lie_as_a_table_does() -> None:
    """Channel (anchor a, class c) of cell (y, x) is row (y, x, a): what torchvision's head does with its maps."""
    rng = np.random.default_rng(0)
    scores, boxes = rng.random((18, 2, 3)), rng.normal(size=(36, 2, 3))
    anchors = np.concatenate([rng.uniform(5, 20, (54, 2)), rng.uniform(5, 20, (54, 2))], 1)
    layout = Levels(("s", "b"), ((18, 2, 3), (36, 2, 3)), SIZE, 2, anchors, None)
    found, confidence = decoded(layout, scores, boxes)
    y, x, a = 1, 2, 4
    row = (y * 3 + x) * 9 + a
    assert confidence[row].tolist() == scores[2 * a : 2 * a + 2, y, x].tolist()
    dx, dy, dw, dh = boxes[4 * a : 4 * a + 4, y, x]
    cx, cy, w, h = anchors[row]
    middle, size = [cx + dx * w, cy + dy * h], [w * np.exp(dw), h * np.exp(dh)]
    assert found[row] == pytest.approx(
        [middle[0] - size[0] / 2, middle[1] - size[1] / 2, middle[0] + size[0] / 2, middle[1] + size[1] / 2]
    )


def test_ultraface_anchors_are_those_of_its_320x240_model() -> None:
    """4420 of them; the first cell's are squares of 10, 16 and 24 around (4, 4)."""
    anchors = ultraface_anchors((240, 320))
    assert len(anchors) == 4420
    assert anchors[:3].tolist() == [[4, 4, 10, 10], [4, 4, 16, 16], [4, 4, 24, 24]]
    assert anchors[-1].tolist() == [288, 224, 256, 240]  # cell (3, 4) of stride 64, cut at the picture's height


def _layouts() -> dict[str, HeadLayout]:
    anchors = np.array([[10.0, 20, 8, 4], [30, 10, 6, 12]])
    pair = (("s", "b"), ((2, 3), (2, 4)))
    return {
        "yolov5": Yolo(("o",), ((42, 7),), SIZE, 2, True, False),
        "yolov5 logits": Yolo(("o",), ((42, 7),), SIZE, 2, True, False, True),
        "yolov8": Yolo(("o",), ((6, 42),), SIZE, 2, False, True),
        "yolox": YoloX(("o",), ((42, 7),), SIZE, 2, True, False),
        "nanodet": NanoDet(("o",), ((42, 34),), SIZE, 2, SMALL, True),
        "ssd": ScoresAndBoxes(*pair, SIZE, 2, "first", None),
        "ssd offsets": ScoresAndBoxes(*pair, SIZE, 2, "first", "softmax", anchors),
        "nms": ScoresAndBoxes(("s", "b"), ((3, 2), (2, 4)), SIZE, 3, None, yx=True, swapped=True),
        "detr": ScoresAndBoxes(*pair, SIZE, 2, "last", "softmax", centres=True),
        "levels": Levels(("s", "b"), ((18, 1, 2), (36, 1, 2)), SIZE, 2, np.tile(anchors, (9, 1)), "sigmoid"),
        "yunet": YuNet(tuple("abcdefghi"), tuple((n, w) for w in (1, 1, 4) for n in (32, 8, 2)), SIZE, 1, SMALL),
        "yolov10": EndToEnd(("o",), ((2, 6),), SIZE, 0),
        "rtdetr": Queries(("o",), ((2, 6),), SIZE, 2, False, False),
        "rtdetr chosen": EndToEnd(("o",), ((2, 6),), SIZE, 0, centres=True),
    }


@pytest.mark.parametrize("name", _layouts())
@pytest.mark.parametrize("what", ["score", "width"])
def test_weights_are_the_derivative_by_every_number_of_every_output(name: str, what: str) -> None:
    """Every output is changed along a random direction: the score of one anchor, or its width, changes by the sum of
    weights times change (central differences of decoding itself)."""
    layout = _layouts()[name]
    rng = np.random.default_rng(0)
    outputs = [rng.uniform(0.2, 0.8, shape) for shape in layout.shapes]
    anchor, label = 1, max(layout.classes - 1, 0)
    function: Callable[[np.ndarray, np.ndarray], np.ndarray] = {
        "score": lambda rows, places: layout.score(rows, label),
        "width": lambda rows, places: layout.boxes(rows, places)[:, 2] - layout.boxes(rows, places)[:, 0],
    }[what]

    def value(step: float, directions: list[np.ndarray]) -> float:
        rows = layout.rows([o + step * d for o, d in zip(outputs, directions, strict=True)])
        return float(function(rows, layout.places(rows))[anchor])

    rows = layout.rows(outputs)
    exact = derivative(function, rows[anchor], layout.places(rows)[anchor])
    weights = layout.scattered(layout.entries[anchor], exact)
    for _ in range(3):
        directions = [rng.normal(size=shape) for shape in layout.shapes]
        expected = (value(1e-5, directions) - value(-1e-5, directions)) / 2e-5
        found = sum(float((weights[v] * d).sum()) for v, d in zip(layout.values, directions, strict=True))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert abs(expected) > 1e-3


@pytest.mark.parametrize("name", _layouts())
def test_factors_are_the_numbers_that_the_score_depends_on_and_no_others(name: str) -> None:
    layout = _layouts()[name]
    rows = layout.rows([np.random.default_rng(0).uniform(0.2, 0.8, shape) for shape in layout.shapes])
    exact = derivative(lambda r, _: layout.score(r, 0), rows[0], layout.places(rows)[0])
    softmax = getattr(layout, "activation", None) == "softmax"  # which depends on all classes
    used = np.flatnonzero(np.abs(exact) > 1e-12)
    assert set(layout.factors(0)) <= set(used) if softmax else set(layout.factors(0)) == set(used)
    assert not set(layout.factors(0)) & set(layout.box_columns)
