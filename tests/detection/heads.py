"""Small detectors, seeded, whose heads lie like those that people export. No convolution before the heads has a bias,
so the maps are homogeneous: a picture times 1.01 gives maps times 1.01."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIDE = 64
STRIDES = (8, 16, 32)
CLASSES = 3


class Net:
    """Appends nodes; values are names."""

    def __init__(self, side: int = SIDE, levels: int = 3, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.side = side
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[Any] = []
        # A pyramid with a way from coarse to fine: the finest map of the backbone is what all levels come from.
        maps = [self.Relu(self.conv("x", 8, 3, kernel=3, stride=8))]
        self.trunk = maps[0]
        for _ in range(levels - 1):
            maps.append(self.Relu(self.conv(maps[-1], 8, 8, kernel=3, stride=2)))
        if levels > 1:
            larger = self.Resize(maps[1], "", self.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
            maps[0] = self.Relu(self.conv(self.Concat(maps[0], larger, axis=1), 8, 16))
        self.maps = maps

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def emit(*inputs: str, outputs: int = 1, **attributes: Any) -> Any:
            names = [f"{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
            return names[0] if outputs == 1 else names

        return emit

    def conv(
        self, source: str, channels: int, inputs: int = 8, kernel: int = 1, stride: int = 1, bias: float | None = None
    ) -> str:
        scale = (2 / (inputs * kernel * kernel)) ** 0.5
        weights = self.rng.normal(0, scale, (channels, inputs, kernel, kernel)).astype(np.float32)
        rest = [] if bias is None else [self.constant(np.full(channels, bias, np.float32))]
        pad = kernel // 2
        side = [pad, pad, pad, pad]
        return str(self.Conv(source, self.constant(weights), *rest, strides=[stride, stride], pads=side))

    def reshape(self, value: str, *shape: int) -> str:
        return str(self.Reshape(value, self.constant(np.array(shape, np.int64))))

    def rows(self, value: str, width: int) -> str:
        """(1, n width, h, w) as (1, h w n, width)."""
        return self.reshape(self.Transpose(value, perm=[0, 2, 3, 1]), 1, -1, width)

    def output(self, value: str, name: str, dtype: int = TensorProto.FLOAT, rank: int = 3) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, [None] * rank))

    def model(self, batch: int | str = 1, **metadata: str) -> ModelProto:
        shape = [batch, 3, self.side, self.side]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "detector", [x], self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        model.producer_name = "pytorch"
        helper.set_model_props(model, metadata)
        return model


def _cells(side: int, stride: int) -> np.ndarray:
    h = side // stride
    y, x = np.divmod(np.arange(h * h), h)
    return np.stack([x, y], 1).astype(np.float32)


def yolov5() -> ModelProto:
    """YOLOv5's own export: a sigmoid over all, then boxes decoded, three anchors per cell."""
    net, width, parts = Net(), 5 + CLASSES, []
    for source, stride in zip(net.maps, STRIDES, strict=True):
        h = SIDE // stride
        raw = net.reshape(net.conv(source, 3 * width, bias=0.1), 1, 3, width, h, h)
        y = net.Sigmoid(net.Transpose(raw, perm=[0, 1, 3, 4, 2]))
        split = net.constant(np.array([2, 2, 1 + CLASSES], np.int64))
        xy, wh, known = net.Split(y, split, outputs=3, axis=4)
        grid = net.constant(_cells(SIDE, stride).reshape(1, 1, h, h, 2) - 0.5)
        two, s = net.constant(np.float32([2])), net.constant(np.float32([stride]))
        xy = net.Mul(net.Add(net.Mul(xy, two), grid), s)
        wh = net.Mul(net.Pow(net.Mul(wh, two), two), net.constant(np.float32([4 * stride])))
        parts.append(net.reshape(net.Concat(xy, wh, known, axis=4), 1, -1, width))
    net.output(net.Concat(*parts, axis=1), "output0")
    return net.model()


def yolov8(batch: int | str = 1, **metadata: str) -> ModelProto:
    """Ultralytics' export from v8 on: distributions of distances, softmax, then (N, 4 + C, A)."""
    net, bins, parts = Net(), 4, []
    for source in net.maps:
        both = net.Concat(net.conv(source, 4 * bins, bias=0.1), net.conv(source, CLASSES, bias=0.1), axis=1)
        parts.append(net.reshape(both, 0, 4 * bins + CLASSES, -1))
    split = net.constant(np.array([4 * bins, CLASSES], np.int64))
    box, classes = net.Split(net.Concat(*parts, axis=2), split, outputs=2, axis=1)
    box = net.Softmax(net.Transpose(net.reshape(box, 0, 4, bins, -1), perm=[0, 2, 1, 3]), axis=1)
    distance = net.Conv(box, net.constant(np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1)))
    low, high = net.Split(net.reshape(distance, 0, 4, -1), net.constant(np.array([2, 2], np.int64)), outputs=2, axis=1)
    places = np.concatenate([_cells(SIDE, s) + 0.5 for s in STRIDES]).T[np.newaxis]
    strides = np.concatenate([np.full((SIDE // s) ** 2, s, np.float32) for s in STRIDES]).reshape(1, 1, -1)
    middle = net.constant(places.astype(np.float32))
    first, last = net.Sub(middle, low), net.Add(middle, high)
    two = net.constant(np.float32([2]))
    centre, size = net.Div(net.Add(first, last), two), net.Sub(last, first)
    pixels = net.Mul(net.Concat(centre, size, axis=1), net.constant(strides))
    net.output(net.Concat(pixels, net.Sigmoid(classes), axis=1), "output0")
    return net.model(batch, **metadata)


def yolox() -> ModelProto:
    """YOLOX without its decoder: three convolutions per level, sigmoid of two of them."""
    net, parts = Net(), []
    for source in net.maps:
        known = [net.Sigmoid(net.conv(source, n, bias=0.1)) for n in (1, CLASSES)]
        parts.append(net.reshape(net.Concat(net.conv(source, 4, bias=0.1), *known, axis=1), 1, 5 + CLASSES, -1))
    net.output(net.Transpose(net.Concat(*parts, axis=2), perm=[0, 2, 1]), "output")
    return net.model()


def nanodet() -> ModelProto:
    """NanoDet-Plus: one convolution per level of four, sigmoid of the classes."""
    net, parts = Net(levels=4), []
    for source in net.maps:
        raw = net.conv(source, 40 + 32, bias=0.1)
        split = net.constant(np.array([40, 32], np.int64))
        classes, box = net.Split(raw, split, outputs=2, axis=1)
        parts.append(net.reshape(net.Concat(net.Sigmoid(classes), box, axis=1), 1, 72, -1))
    net.output(net.Transpose(net.Concat(*parts, axis=2), perm=[0, 2, 1]), "output")
    return net.model()


def _scores_and_boxes(per_cell: Sequence[int], classes: int, levels: int = 3) -> tuple[Net, str, str]:
    net, scores, boxes = Net(levels=levels), [], []
    for source, n in zip(net.maps, per_cell, strict=True):
        scores.append(net.rows(net.conv(source, n * classes, bias=0.1), classes))
        boxes.append(net.rows(net.conv(source, n * 4, bias=0.1), 4))
    return net, net.Concat(*scores, axis=1), net.Concat(*boxes, axis=1)


def ssd(decoded: bool = True) -> ModelProto:
    """Softmax with a background, boxes as shares of the picture, or as offsets."""
    net, scores, boxes = _scores_and_boxes((2, 2, 2), CLASSES + 1)
    net.output(net.Softmax(scores, axis=2), "scores")
    if decoded:
        prior = np.random.default_rng(1).uniform(0.2, 0.5, (1, 168, 2)).astype(np.float32)
        first = net.Add(net.Mul(net.Slice(boxes, *_ints(net, 0, 2, 2)), net.constant(np.float32([0.1]))),
                        net.constant(prior))  # fmt: skip
        size = net.Mul(net.Exp(net.Slice(boxes, *_ints(net, 2, 4, 2))), net.constant(np.float32([0.3])))
        boxes = net.Concat(first, net.Add(first, size), axis=2)
    net.output(boxes, "boxes")
    return net.model()


def _ints(net: Net, *numbers: int) -> list[str]:
    return [net.constant(np.array([n], np.int64)) for n in numbers]


def ultraface() -> ModelProto:
    """UltraFace's anchors, offsets not decoded, no softmax yet."""
    net, scores, boxes = _scores_and_boxes((3, 2, 2, 3), 2, levels=4)
    net.output(scores, "scores")
    net.output(boxes, "boxes")
    return net.model()


def retinanet(levels: bool) -> ModelProto:
    """torchvision's RetinaNet: nine anchors per cell of five grids, in one table or a map per level."""
    net, scores, boxes = Net(side=128, levels=4), [], []
    net.maps.append(net.Relu(net.conv(net.maps[-1], 8, 8, kernel=3, stride=2)))
    for source in net.maps:
        scores.append(net.conv(source, 9 * CLASSES, bias=0.1))
        boxes.append(net.conv(source, 9 * 4, bias=0.1))
    if levels:
        for i, (score, box) in enumerate(zip(scores, boxes, strict=True)):
            net.output(net.Sigmoid(score), f"cls_{i}", rank=4)
            net.output(box, f"box_{i}", rank=4)
    else:
        net.output(net.Concat(*(net.rows(s, CLASSES) for s in scores), axis=1), "cls_logits")
        net.output(net.Concat(*(net.rows(b, 4) for b in boxes), axis=1), "bbox_regression")
    return net.model()


def yunet() -> ModelProto:
    """Twelve outputs: class, objectness, box and key points for each of three strides."""
    net = Net()
    for source, stride in zip(net.maps, STRIDES, strict=True):
        for part, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            rows = net.rows(net.conv(source, width, bias=0.1), width)
            net.output(net.Sigmoid(rows) if width == 1 else rows, f"{part}_{stride}")
    return net.model()


def detr(queries: int) -> ModelProto:
    """Queries that weigh the cells of one map: DETR with 100 or fewer, RT-DETR with more."""
    net = Net(levels=1)
    tokens = net.Transpose(net.reshape(net.conv(net.maps[0], 8), 1, 8, -1), perm=[0, 2, 1])
    asked = net.constant(net.rng.normal(size=(1, queries, 8)).astype(np.float32))
    weights = net.Softmax(net.MatMul(asked, net.Transpose(tokens, perm=[0, 2, 1])), axis=2)
    seen = net.Add(net.MatMul(weights, tokens), asked)
    softmax = queries <= 100
    net.output(net.MatMul(seen, net.constant(net.rng.normal(size=(8, CLASSES + softmax)).astype(np.float32))), "logits")
    net.output(
        net.Sigmoid(net.MatMul(seen, net.constant(net.rng.normal(size=(8, 4)).astype(np.float32)))), "pred_boxes"
    )
    return net.model()


def rtdetr(chosen: bool) -> ModelProto:
    """Ultralytics' RT-DETR: sigmoids of boxes and classes in one table, or the ten best of them."""
    net = Net(levels=1)
    tokens = net.Transpose(net.reshape(net.conv(net.maps[0], 8), 1, 8, -1), perm=[0, 2, 1])
    weights = [net.constant(net.rng.normal(size=(8, n)).astype(np.float32)) for n in (4, CLASSES)]
    boxes, scores = (net.Sigmoid(net.MatMul(tokens, w)) for w in weights)
    if chosen:
        best, labels = net.TopK(scores, *_ints(net, 1), outputs=2, axis=2)
        top, index = net.TopK(best, *_ints(net, 10), outputs=2, axis=1)
        labels = net.Cast(net.GatherElements(labels, index, axis=1), to=TensorProto.FLOAT)
        four = net.Tile(index, net.constant(np.array([1, 1, 4], np.int64)))
        net.output(net.Concat(net.GatherElements(boxes, four, axis=1), top, labels, axis=2), "output0")
    else:
        net.output(net.Concat(boxes, scores, axis=2), "output0")
    return net.model()


def _flat(net: Net) -> tuple[str, str]:
    """Corners in pixels (1, 84, 4) and probabilities (1, 84, C)."""
    boxes = net.Concat(*(net.rows(net.conv(m, 4, bias=0.1), 4) for m in net.maps), axis=1)
    scores = net.Concat(*(net.rows(net.conv(m, CLASSES, bias=0.1), CLASSES) for m in net.maps), axis=1)
    places = np.concatenate([(_cells(SIDE, s) + 0.5) * s for s in STRIDES])[np.newaxis]
    middle = net.constant(places.astype(np.float32))
    half = net.Exp(net.Slice(boxes, *_ints(net, 2, 4, 2)))
    half = net.Mul(half, net.constant(np.float32([6])))
    return net.Concat(net.Sub(middle, half), net.Add(middle, half), axis=2), net.Sigmoid(scores)


def yolov10() -> ModelProto:
    """YOLOv10: the ten best of all, chosen by TopK, (N, 10, 6)."""
    net = Net()
    boxes, scores = _flat(net)
    best, labels = net.TopK(scores, *_ints(net, 1), outputs=2, axis=2)
    top, index = net.TopK(best, *_ints(net, 10), outputs=2, axis=1)
    labels = net.GatherElements(labels, index, axis=1)
    four = net.Tile(index, net.constant(np.array([1, 1, 4], np.int64)))
    chosen = net.GatherElements(boxes, four, axis=1)
    net.output(net.Concat(chosen, top, net.Cast(labels, to=TensorProto.FLOAT), axis=2), "output0")
    return net.model()


def nms() -> ModelProto:
    """NonMaxSuppression inside, and what it selects gathered behind it."""
    net = Net()
    boxes, scores = _flat(net)
    per_class = net.Transpose(scores, perm=[0, 2, 1])
    most, iou, least = net.constant(np.array([100], np.int64)), *(net.constant(np.float32([v])) for v in (0.4, 0.3))
    chosen = net.NonMaxSuppression(boxes, per_class, most, iou, least)
    anchors = net.Gather(chosen, net.constant(np.array(2, np.int64)), axis=1)
    net.output(net.Gather(net.reshape(boxes, -1, 4), anchors, axis=0), "boxes", rank=2)
    net.output(chosen, "selected", TensorProto.INT64, rank=2)
    return net.model()


def boxes() -> ModelProto:
    """As torchvision exports: boxes, scores and labels of what a threshold, NonMaxSuppression and TopK left, whose
    number depends on the picture, without a batch."""
    net = Net()
    corners, scores = _flat(net)
    corners, scores = net.reshape(corners, -1, 4), net.reshape(scores, -1, CLASSES)
    kept = net.Transpose(net.NonZero(net.Greater(scores, net.constant(np.float32(0.3)))), perm=[1, 0])
    scores = net.GatherND(scores, kept)
    anchor, label = net.Split(kept, net.constant(np.array([1, 1], np.int64)), outputs=2, axis=1)
    axis = net.constant(np.array([1], np.int64))
    anchor, label = net.Squeeze(anchor, axis), net.Squeeze(label, axis)
    corners = net.Gather(corners, anchor, axis=0)
    # A shift by the class, so that boxes of different classes do not overlap.
    shift = net.Mul(net.Cast(label, to=TensorProto.FLOAT), net.constant(np.float32([1000])))
    apart = net.Add(corners, net.Unsqueeze(shift, axis))
    lone = net.constant(np.array([0], np.int64))
    rows = net.reshape(scores, 1, 1, -1)
    most, iou = net.constant(np.array([50], np.int64)), net.constant(np.float32([0.4]))
    chosen = net.NonMaxSuppression(net.Unsqueeze(apart, lone), rows, most, iou)
    chosen = net.Gather(chosen, net.constant(np.array(2, np.int64)), axis=1)
    net.output(net.Gather(corners, chosen, axis=0), "boxes", rank=2)
    net.output(net.Gather(scores, chosen, axis=0), "scores", rank=1)
    net.output(net.Gather(label, chosen, axis=0), "labels", TensorProto.INT64, rank=1)
    return net.model()


def squares() -> ModelProto:
    """Finds red cells of 8 x 8 pixels; for pixels of 0 to 255 in BGR, as YOLOX takes them: red is the third channel.

    The score of a cell as red as r is sigmoid(20 r / 255 - 16) times sigmoid(10), its box the cell.
    """
    net = Net(64, levels=0)
    red = np.zeros((1, 3, 8, 8), np.float32)
    red[0, 2] = 1 / 64 / 255
    source = net.Relu(net.Conv("x", net.constant(red), strides=[8, 8]))
    parts = []
    for weight, bias in (([0, 0, 0, 0], [0.5, 0.5, 0, 0]), ([20], [-16]), ([0, 0], [10, -10])):
        w = net.constant(np.array(weight, np.float32).reshape(-1, 1, 1, 1))
        head = net.Conv(source, w, net.constant(np.array(bias, np.float32)))
        parts.append(head if len(weight) == 4 else net.Sigmoid(head))
    net.output(net.Transpose(net.reshape(net.Concat(*parts, axis=1), 1, 7, -1), perm=[0, 2, 1]), "output")
    return net.model()


HEADS: dict[str, tuple[str, Callable[[], ModelProto]]] = {
    "yolov5": ("yolov5", yolov5),
    "yolov8": ("yolov8", yolov8),
    "yolox": ("yolox", yolox),
    "nanodet": ("nanodet", nanodet),
    "ssd": ("ssd", ssd),
    "ultraface": ("ultraface", ultraface),
    "retinanet, a table": ("retinanet", lambda: retinanet(False)),
    "retinanet, levels": ("retinanet", lambda: retinanet(True)),
    "yunet": ("yunet", yunet),
    "detr": ("detr", lambda: detr(20)),
    "rt-detr": ("detr", lambda: detr(120)),
    "rtdetr, a table": ("rtdetr", lambda: rtdetr(False)),
    "rtdetr, chosen": ("rtdetr", lambda: rtdetr(True)),
    "yolov10": ("yolov10", yolov10),
    "nms": ("nms", nms),
    "boxes": ("boxes", boxes),
}
