"""Which outputs of a detector hold what: recognised from their shapes and from what made them, or stated."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.engine import INTEGERS
from onnxcam.detection.decode import (
    Array,
    EndToEnd,
    HeadLayout,
    Levels,
    NanoDet,
    Queries,
    ScoresAndBoxes,
    Size,
    Yolo,
    YoloX,
    YuNet,
    cells,
    retinanet_anchors,
    strides_for,
    ultraface_anchors,
)
from onnxcam.detection.neck import tail
from onnxcam.detection.target import ends_in_activation
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.head import before_activation
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layout import MOVES

Shape = tuple[int, ...]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

# What only moves numbers, or is the activation of a score: a box behind nothing else is not decoded yet.
_PLAIN = MOVES | {
    *("Concat", "Split", "Slice", "Gather", "Cast", "Sigmoid", "Softmax", "QuantizeLinear", "DequantizeLinear")
}


@dataclass(frozen=True)
class Recognised:
    """A recognised detector: the `kind`, a key of KINDS, its layout, and the thresholds that the model states."""

    kind: str
    layout: HeadLayout
    score_threshold: float | None = None
    iou_threshold: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What a model shows of its heads: fixed shapes per sample of its outputs, and how they were made.

    classes: how many names are known. anchors: (A, 4) centre, width and height in pixels, stated by the user.
    """

    graph: Graph
    size: Size
    classes: int | None
    anchors: Array | None

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Per output that has the batch in front and fixed sizes behind it, these sizes."""
        return {name: shape for name in self.graph.outputs if (shape := self.shape(name)) is not None}

    def shape(self, value: str) -> Shape | None:
        """The sizes behind the batch, where they are fixed."""
        shape = self.graph.shape(value)
        if shape is None or len(shape) < 2 or not all(isinstance(d, int) for d in shape[1:]):
            return None
        return tuple(int(d) for d in shape[1:] if isinstance(d, int))

    def tail(self, value: str) -> tuple[list[Node], list[Node]]:
        """See `neck.tail`."""
        return tail(self.graph, value, self.size)

    def has(self, value: str, *op_types: str) -> bool:
        """Whether an operator stands between the last convolutions and a value."""
        return any(node.op_type in op_types for node in self.tail(value)[0])

    def computes(self, value: str) -> bool:
        """Whether anything between the last convolutions and a value does arithmetic on what they made."""
        nodes, ends = self.tail(value)
        reached = {output for node in ends for output in node.outputs}
        for node in nodes:
            if reached & set(node.reads):
                if node.op_type not in _PLAIN:
                    return True
                if node.op_type != "Shape":
                    reached.update(node.outputs)
        return False

    def has_objectness(self, value: str) -> bool:
        """Whether a last convolution has a single channel."""
        return any((self.graph.shape(n.outputs[0]) or (0, 0))[1] == 1 for n in self.tail(value)[1])

    def boxes_are_shares(self, value: str) -> bool:
        """Whether the first part of a value is a Sigmoid that was only moved since: boxes as shares of the picture."""
        node = self.graph.producer(value)
        while node is not None and node.op_type == "Identity":
            node = self.graph.producer(node.inputs[0])
        if node is None or node.op_type != "Concat" or node.attrs["axis"] not in (-1, 2):
            return False
        node = self.graph.producer(node.inputs[0])
        while node is not None and (
            node.op_type in MOVES
            or node.op_type.startswith("Gather")
            or (node.op_type, len(node.inputs)) == ("Concat", 1)
        ):
            node = self.graph.producer(node.inputs[0])
        return node is not None and node.op_type == "Sigmoid"

    def levels(self, value: str) -> int:
        """Number of different grids that the last convolutions before a value have."""
        return len({(self.graph.shape(n.outputs[0]) or ())[2:] for n in self.tail(value)[1]})

    def tables(self) -> list[tuple[str, Shape]]:
        """Outputs (A, D) per sample."""
        return [(name, shape) for name, shape in self.shapes.items() if len(shape) == 2]


def _oriented(evidence: Evidence, per_cell: tuple[int, ...]) -> tuple[str, Shape, bool, tuple[int, ...], int] | None:
    """The output with as many rows, or columns, as there are anchors: name, shape, swapped, strides, per cell."""
    for name, shape in evidence.tables():
        for swapped, anchors in ((False, shape[0]), (True, shape[1])):
            if shape[not swapped] < 5:
                continue
            for strides, n in strides_for(evidence.size, anchors, per_cell):
                return name, shape, swapped, strides, n
    return None


def _columns(evidence: Evidence, width: int, before: int) -> int:
    """Number of classes among the columns: known by name, else all but those of masks, which an output of prototypes
    betrays."""
    masks = [s[0] for s in evidence.shapes.values() if len(s) == 3 and s[0] in (16, 32, 64)]
    rest = width - before - (masks[0] if masks else 0)
    return evidence.classes if evidence.classes is not None and 0 < evidence.classes <= rest else max(rest, 1)


def _yolo(evidence: Evidence, objectness: bool) -> Yolo | None:
    found = _oriented(evidence, (1, 3))
    if found is None:
        return None
    name, shape, swapped, _, _ = found
    before = 5 if objectness else 4
    logits = not evidence.has(name, "Sigmoid")
    classes = _columns(evidence, shape[0] if swapped else shape[1], before)
    return Yolo((name,), (shape,), evidence.size, classes, objectness, swapped, logits)


def _yolov5(evidence: Evidence) -> Yolo | None:
    return _yolo(evidence, True)


def _yolov8(evidence: Evidence) -> Yolo | None:
    return _yolo(evidence, False)


def _yolox(evidence: Evidence) -> YoloX | None:
    found = _oriented(evidence, (1,))
    if found is None:
        return None
    name, shape, swapped, strides, _ = found
    logits = not evidence.has(name, "Sigmoid")
    classes = (shape[0] if swapped else shape[1]) - 5
    return YoloX((name,), (shape,), evidence.size, classes, True, swapped, logits, strides)


def _nanodet(evidence: Evidence) -> NanoDet | None:
    found = _oriented(evidence, (1,))
    if found is None or found[2]:
        return None
    name, shape, _, strides, _ = found
    classes = shape[1] - 32 if evidence.classes is None else evidence.classes
    if classes < 1 or (shape[1] - classes) % 4 or shape[1] - classes < 8:
        return None
    return NanoDet((name,), (shape,), evidence.size, classes, strides, not evidence.has(name, "Sigmoid"))


def _pair(evidence: Evidence) -> tuple[str, str] | None:
    """Outputs (A, C) and (A, 4), scores and boxes."""
    tables = dict(evidence.tables())
    boxes = [n for n, s in tables.items() if s[1] == 4]
    for box in sorted(boxes, key=lambda n: not any(word in n.lower() for word in ("box", "loc", "reg"))):
        others = [n for n, s in tables.items() if n != box and s[0] == tables[box][0]]
        named = [n for n in others if any(word in n.lower() for word in ("score", "cls", "class", "conf", "logit"))]
        active = [n for n in others if evidence.has(n, "Softmax", "Sigmoid")]
        for score in (*named, *active, *others):
            if tables[score][1] not in (10, 136) or score in named:  # key points
                return score, box
    return None


def _ssd(evidence: Evidence) -> ScoresAndBoxes | None:
    pair = _pair(evidence)
    if pair is None:
        return None
    shapes = (evidence.shapes[pair[0]], evidence.shapes[pair[1]])
    width = shapes[0][1]
    focal = evidence.has(pair[0], "Sigmoid") or width == 1
    activation = None if evidence.has(pair[0], "Sigmoid", "Softmax") else "sigmoid" if width == 1 else "softmax"
    anchors = _anchors(evidence, pair[1], shapes[1][0])
    return ScoresAndBoxes(
        pair, shapes, evidence.size, width - (not focal), None if focal else "first", activation, anchors
    )


def _anchors(evidence: Evidence, boxes: str, count: int) -> Array | None:
    """The anchors stated; None where boxes are decoded. Raises: UsageError, UnsupportedError where they are missing."""
    if evidence.anchors is not None:
        if evidence.anchors.shape != (count, 4):
            raise UsageError(
                f"anchors of shape {list(evidence.anchors.shape)}, but `{boxes}` holds {count} boxes",
                f"give [{count}, 4]: centre x, centre y, width and height in pixels of the model's input",
            )
        return evidence.anchors.astype(np.float64)
    if evidence.computes(boxes):
        return None
    raise UnsupportedError(
        f"`{boxes}` holds offsets from {count} anchors, and the file does not say which",
        "give them with `--anchors FILE.npy`: centre x, centre y, width and height in pixels of the model's input",
    )


def _ultraface(evidence: Evidence) -> ScoresAndBoxes | None:
    pair = _pair(evidence)
    count = len(ultraface_anchors(evidence.size))
    if pair is None or evidence.shapes[pair[0]] != (count, 2):
        return None
    shapes = (evidence.shapes[pair[0]], evidence.shapes[pair[1]])
    anchors = None if evidence.computes(pair[1]) else ultraface_anchors(evidence.size)
    activation = None if evidence.has(pair[0], "Softmax") else "softmax"
    return ScoresAndBoxes(pair, shapes, evidence.size, 1, "first", activation, anchors)


_RETINA = (8, 16, 32, 64, 128)


def _retinanet(evidence: Evidence) -> HeadLayout | None:
    count = 9 * cells(evidence.size, _RETINA)
    pair = _pair(evidence)
    if pair is not None and evidence.shapes[pair[1]][0] == count:
        shapes = (evidence.shapes[pair[0]], evidence.shapes[pair[1]])
        decoded = evidence.computes(pair[1])
        anchors = (
            None if decoded else retinanet_anchors(evidence.size) if evidence.anchors is None else evidence.anchors
        )
        activation = None if evidence.has(pair[0], "Sigmoid") else "sigmoid"
        return ScoresAndBoxes(pair, shapes, evidence.size, shapes[0][1], None, activation, anchors, (1.0, 1.0))
    maps = {n: s for n, s in evidence.shapes.items() if len(s) == 3}
    grids = sorted({s[1:] for s in maps.values()}, reverse=True)
    per_level = [[n for n, s in maps.items() if s[1:] == grid] for grid in grids]
    if len(grids) != len(_RETINA) or any(len(level) != 2 for level in per_level):
        return None
    boxes = [next((n for n in level if maps[n][0] == 36), "") for level in per_level]
    scores = [next((n for n in level if n != box), "") for level, box in zip(per_level, boxes, strict=True)]
    if not all(boxes) or any(maps[n][0] % 9 for n in scores):
        return None
    values = (*scores, *boxes)
    anchors = _retina_anchors(evidence)
    return Levels(
        values,
        tuple(maps[n] for n in values),
        evidence.size,
        maps[scores[0]][0] // 9,
        anchors,
        None if evidence.has(scores[0], "Sigmoid") else "sigmoid",
    )


def _retina_anchors(evidence: Evidence) -> Array:
    return retinanet_anchors(evidence.size) if evidence.anchors is None else evidence.anchors


def _yunet(evidence: Evidence) -> YuNet | None:
    strides = (8, 16, 32)
    values = [f"{part}_{s}" for part in ("cls", "obj", "bbox") for s in strides]
    if not all(v in evidence.shapes for v in values):
        return None
    shapes = tuple(evidence.shapes[v] for v in values)
    return YuNet(tuple(values), shapes, evidence.size, shapes[0][-1], strides)


def _yolov10(evidence: Evidence) -> EndToEnd | None:
    for name, shape in evidence.tables():
        if shape[1] == 6 and shape[0] <= 1000:
            return EndToEnd((name,), (shape,), evidence.size, evidence.classes or 0)
    return None


def _chosen(evidence: Evidence) -> EndToEnd | None:
    """Boxes (M, 4), scores (M) and labels (M), with or without a batch in front."""
    graph = evidence.graph
    ranks = {name: len(shape) for name in graph.outputs if (shape := graph.shape(name)) is not None}
    for box in (n for n, rank in ranks.items() if rank in (2, 3) and (graph.shape(n) or (0,))[-1] == 4):
        beside = [n for n, rank in ranks.items() if rank == ranks[box] - 1]
        scores = [n for n in beside if graph.dtype(n) in _FLOATS]
        labels = [n for n in beside if graph.dtype(n) in INTEGERS]
        if len(scores) == 1 and len(labels) == 1:
            batched = ranks[box] == 3
            rows = (graph.shape(box) or (0,))[1 if batched else 0]
            m = rows if isinstance(rows, int) else 0
            values = (box, scores[0], labels[0])
            return EndToEnd(values, ((m, 4), (m,), (m,)), evidence.size, evidence.classes or 0, batched)
    return None


def _rtdetr(evidence: Evidence) -> HeadLayout | None:
    for name, shape in evidence.tables():
        if shape[0] <= 1000 and shape[1] == 6:
            return EndToEnd((name,), (shape,), evidence.size, evidence.classes or 0, centres=True)
        if shape[0] <= 1000 and shape[1] > 4:
            return Queries((name,), (shape,), evidence.size, shape[1] - 4, False, False)
    return None


def _detr(evidence: Evidence) -> ScoresAndBoxes | None:
    pair = _pair(evidence)
    if pair is None or evidence.shapes[pair[1]][0] > 1000:
        return None
    shapes = (evidence.shapes[pair[0]], evidence.shapes[pair[1]])
    # DETR itself has 100 queries and a class for none of them; its heirs have more, and a sigmoid per class.
    softmax = shapes[0][0] <= 100
    done = before_activation(evidence.graph, pair[0]) is not None
    return ScoresAndBoxes(
        pair,
        shapes,
        evidence.size,
        shapes[0][1] - softmax,
        "last" if softmax else None,
        None if done else "softmax" if softmax else "sigmoid",
        centres=True,
        single=True,
    )


def _nms(evidence: Evidence) -> ScoresAndBoxes | None:
    """What goes into the model's own NonMaxSuppression: boxes (N, A, 4), scores (N, C, A)."""
    node = suppression(evidence.graph)
    if node is None:
        return None
    boxes, scores = (evidence.shape(v) for v in node.inputs[:2])
    if boxes is None or scores is None:
        return None
    # The order of the axes is nothing to an overlap, and PyTorch's exporter hands boxes over as x0, y0, x1, y1.
    torch = evidence.graph.model.producer_name == "pytorch"
    centres = bool(node.attrs.get("center_point_box"))
    return ScoresAndBoxes(
        (node.inputs[1], node.inputs[0]),
        (scores, boxes),
        evidence.size,
        scores[0],
        None,
        swapped=True,
        yx=not centres and not torch,
        centres=centres,
    )


def suppression(graph: Graph) -> Node | None:
    """The model's own NonMaxSuppression, where it has one."""
    return next((n for n in graph.nodes if n.op_type == "NonMaxSuppression"), None)


KINDS: dict[str, tuple[Callable[[Evidence], HeadLayout | None], str]] = {
    "nms": (_nms, "NonMaxSuppression inside: what goes into it, boxes (N, A, 4) and scores (N, C, A)"),
    "yunet": (_yunet, "cls_8 ... bbox_32: class, objectness and box per stride"),
    "retinanet": (_retinanet, "9 anchors per cell of 5 strides: per level, or scores (N, A, C) and offsets (N, A, 4)"),
    "ultraface": (_ultraface, "scores (N, A, 2) and boxes (N, A, 4) of UltraFace's anchors"),
    "ssd": (_ssd, "scores (N, A, C) and boxes (N, A, 4), decoded or with --anchors"),
    "nanodet": (_nanodet, "(N, A, C + 4 (R + 1)): classes and distributions of distances"),
    "yolox": (_yolox, "(N, A, 5 + C), boxes not decoded: strides from each cell"),
    "yolov8": (_yolov8, "(N, 4 + C, A): v8, v9, v11, v12, decoded, no objectness"),
    "yolov5": (_yolov5, "(N, A, 5 + C): v5, v6, v7, YOLOX with its decoder, objectness times class"),
    "detr": (_detr, "class logits (N, M, C) and boxes (N, M, 4) of M queries: DETR, RT-DETR"),
    "rtdetr": (_rtdetr, "(N, M, 4 + C) or (N, M, 6) of M queries, centre and size as shares: RT-DETR of Ultralytics"),
    "boxes": (_chosen, "boxes (M, 4), scores (M) and labels (M), chosen by the model: torchvision, end-to-end exports"),
    "yolov10": (_yolov10, "(N, M, 6): x0, y0, x1, y1, score, class, chosen by the model"),
}


def recognised(
    graph: Graph, size: Size, kind: str | None = None, classes: int | None = None, anchors: Array | None = None
) -> Recognised:
    """The detector that a model is; `kind`, a key of KINDS, where the shapes do not tell.

    size: (H, W) of the model's input. classes: how many class names are known. anchors: see `Evidence`.

    Raises: UsageError for an unknown kind, UnsupportedError where the outputs are no detector's, or not of this kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown detector `{kind}`", f"use one of {', '.join(KINDS)}")
    evidence = Evidence(graph, size, classes, anchors)
    name = kind or _guess(evidence)
    layout = KINDS[name][0](evidence) if name is not None else None
    if name is None or layout is None:
        listing = ", ".join(f"`{o}` {list(graph.shape(o) or ['?'])}" for o in graph.outputs)
        raise UnsupportedError(
            f"the outputs are no detector's that onnxcam knows{f' as `{kind}`' if kind else ''}: {listing}",
            "`--detector KIND` says what they hold: " + "; ".join(f"{k} {about}" for k, (_, about) in KINDS.items()),
        )
    node = suppression(graph) if name == "nms" else None
    if node is None:
        return Recognised(name, layout)
    return Recognised(name, layout, _number(graph, node, 4), _number(graph, node, 3))


def is_detector(graph: Graph, size: Size) -> bool:
    """Whether the outputs look like a detector's; a model with class scores of whole pictures is none."""
    kind = _guess(Evidence(graph, size, None, None))
    return kind in ("nms", "boxes") or (kind is not None and not _classifies(graph))


def _classifies(graph: Graph) -> bool:
    """Whether an output is (N, C)."""
    shapes = [graph.shape(o) or () for o in graph.outputs]
    return any(len(s) == 2 and isinstance(s[1], int) and s[1] > 1 for s in shapes)


def _number(graph: Graph, node: Node, position: int) -> float | None:
    value = node.inputs[position] if len(node.inputs) > position else ""
    array = graph.constant(value) if value else None
    return None if array is None else float(array.ravel()[0])


def _guess(evidence: Evidence) -> str | None:
    """The kind, from the strictest evidence to the weakest."""
    if _chosen(evidence) is not None:
        return "boxes"
    table = _rtdetr(evidence)
    if table is not None and evidence.boxes_are_shares(table.values[0]):
        return "rtdetr"
    best = _yolov10(evidence)
    if best is not None and evidence.has(best.values[0], "TopK", "NonMaxSuppression"):
        return "yolov10"
    if suppression(evidence.graph) is not None:
        return "nms" if _nms(evidence) is not None else None
    if _yunet(evidence) is not None:
        return "yunet"
    pair = _pair(evidence)
    if pair is not None:
        few = evidence.shapes[pair[1]][0] <= 1000 and evidence.has(pair[1], "Sigmoid")
        return next((k for k in ("retinanet", "ultraface") if KINDS[k][0](evidence)), "detr" if few else "ssd")
    if _retinanet(evidence) is not None:
        return "retinanet"
    found = _oriented(evidence, (1, 3))
    if found is None:
        return "yolov10" if _yolov10(evidence) is not None else None
    name, shape, swapped, _, per_cell = found
    if evidence.levels(name) < 2 and not ends_in_activation(evidence.graph, name):
        return None  # as many rows as cells have the tokens of a transformer too
    if per_cell == 3:
        return "yolov5"
    if evidence.computes(name):
        return "yolov8" if swapped else "yolov5"
    if evidence.has_objectness(name) or shape[not swapped] < 37:
        return "yolox"
    return "nanodet" if _nanodet(evidence) is not None else "yolox"
