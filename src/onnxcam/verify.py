"""Numerical verification on demand: the symbolic gradient at a layer against a central difference.

The oracle runs the part of the model behind the layer, made differentiable first (Q -> DQ pairs become Clip to their
range, half precision becomes float32, a final ArgMax, Softmax or QuantizeLinear is stepped over), with the layer's
values moved a little along seeded random directions.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.engine import live_path
from onnxcam.errors import UnsupportedError
from onnxcam.explained import Size, open_graph
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.cost import multiply_adds
from onnxcam.graph.cut import head_after
from onnxcam.graph.head import ACTIVATIONS, classifier_head
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layers import Layers
from onnxcam.graph.read import ModelSource, read
from onnxcam.graph.signature import ImageInput
from onnxcam.runtime import Session

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Evaluate = Callable[[Array], Doubles]

TOLERANCE = {"float64": 1e-3, "float32": 1e-2}

# Heads of at most this many multiplications run in float64 on onnx.reference: some seconds in NumPy. Larger ones run in
# float32 first, and in float64 where curvature, rounding and the kinks of many units drown the difference. The largest
# have float32 alone: choose a later layer for those.
SMALL_HEAD = 60_000_000
LARGE_HEAD = 1_000_000_000
# Relative to the layer's largest activation, tried until one agrees: a small one jumps over fewer kinks (two near
# maxima of a window), a large one loses fewer digits.
STEPS = {"float64": (1e-7, 1e-6, 1e-8), "float32": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF)


@dataclass(frozen=True)
class Verification:
    """What was compared: largest `error` over the `directions`, relative to the largest derivative among them.

    outputs: what was differentiated. oracle: `float64` (onnx.reference) or `float32` (ONNX Runtime). step: relative to
    the layer's largest activation; the first that agreed, else the best of several. derivative: the largest directional
    derivative; 0 means that nothing was tested.
    """

    layer: str
    outputs: tuple[str, ...]
    oracle: str
    step: float
    directions: int
    error: float
    derivative: float

    @property
    def verified(self) -> bool:
        """Whether the error is within the oracle's tolerance, and there was something to compare."""
        return self.derivative > 0 and self.error <= TOLERANCE[self.oracle]

    def to_json(self) -> dict[str, Any]:
        """The verification as plain JSON values."""
        return {
            "verified": self.verified,
            "layer": self.layer,
            "outputs": list(self.outputs),
            "oracle": self.oracle,
            "tolerance": TOLERANCE[self.oracle],
            "error": self.error,
            "derivative": self.derivative,
            "step": self.step,
            "directions": self.directions,
        }


def verify(
    source: ModelSource,
    *,
    layer: str | None = None,
    scores: Sequence[str] = (),
    size: Size | None = None,
    input_layout: str | None = None,
    input_name: str | None = None,
    feeds: Mapping[str, Any] | None = None,
    seed: int = 0,
    directions: int = 3,
) -> Verification:
    """Compare the gradient at `layer` with central differences on one noise picture.

    layer: default the automatic one of a classifier, else the deepest map with weights behind it, before all outputs.
    scores: values whose seeded projection is differentiated, `CheckReport.scores` of what a model is explained by;
    default the logits of a classifier, else every output. Each is stepped back to the floats that it is made of, before
    a final activation and before what TopK or NonMaxSuppression choose of it.

    Raises: UnsupportedError where a head cannot be made differentiable, and what the gradient itself raises.
    """
    file = read(source)
    graph, image, bound = open_graph(file, size=size, input_layout=input_layout, input_name=input_name, feeds=feeds)
    classifier, outputs = (False, _floats(graph, scores)) if scores else _ends(graph)
    chosen = layer or _default_layer(graph, image, outputs, classifier)
    if chosen not in graph:
        chosen = Layers(graph, image.name, image.layout, outputs[0]).named(chosen).name
    rng = np.random.default_rng(seed)
    cut = head_after(graph, chosen, outputs, image.name)
    values = _prefix_values(graph, image, bound, (chosen, *cut.crossing), rng, file.folder)
    values |= {name: image.others[name].rows(len(values[chosen])) for name in cut.chosen}
    head = smoothed(cut.model)
    feeds = {name: _as_float(array) for name, array in values.items()}
    start = feeds.pop(chosen)
    scale = float(np.abs(start).max()) or 1.0
    # Activations rest on kinks (0 after a ReLU, the ends of a quantised range): differences are taken beside them.
    start = (start + scale * rng.uniform(0.01, 0.1, start.shape)).astype(np.float32)
    projections = {o: rng.standard_normal(a.shape) for o, a in Session(head).run({chosen: start, **feeds}).items()}
    gradient = _symbolic(head, chosen, start, feeds, projections)
    moves = [rng.standard_normal(start.shape) for _ in range(directions)]
    claimed = np.array([float((gradient * move).sum()) for move in moves])
    result: Verification | None = None
    for oracle, evaluate in _evaluators(head, chosen, start, feeds, projections):
        best: tuple[float, float, float] = (math.inf, 0.0, 0.0)
        for step in STEPS[oracle]:
            h = step * scale
            sides = [(evaluate(start + h * move).sum(), evaluate(start - h * move).sum()) for move in moves]
            found = np.array([(ahead - behind) / (2 * h) for ahead, behind in sides])
            largest = float(max(np.abs(found).max(), np.abs(claimed).max()))
            error = float(np.abs(found - claimed).max()) / largest if largest else 0.0
            best = min(best, (error, step, largest))
            if error <= TOLERANCE[oracle]:
                break
        result = Verification(chosen, tuple(outputs), oracle, best[1], directions, best[0], best[2])
        if result.verified:
            break
    assert result is not None
    return result


def _ends(graph: Graph) -> tuple[bool, list[str]]:
    """The float values that are differentiated: the logits of a classifier (True), else each output's last floats."""
    try:
        return True, [classifier_head(graph).logits]
    except UnsupportedError:
        return False, _floats(graph, graph.outputs)


def _floats(graph: Graph, values: Sequence[str]) -> list[str]:
    """What the values are made of, before a final activation, ArgMax, quantisation or choice."""
    ends = [_stepped_back(graph, end) for value in values for end in _unchosen(graph, value)]
    found = list(dict.fromkeys(e for e in ends if e is not None))
    if not found:
        raise UnsupportedError("no output holds floats", "there is nothing to differentiate in this model")
    return found


def _unchosen(graph: Graph, value: str) -> list[str]:
    """What a value was chosen from by TopK or NonMaxSuppression, itself where nothing was chosen.

    The least move of a layer may change what is chosen, and has no derivative there.
    """
    node = graph.producer(value)
    if node is None:
        return [value]
    if node.op_type == "TopK" or (node.op_type.startswith("Gather") and _chooses(graph, node.inputs[1])):
        return _unchosen(graph, node.inputs[0])
    moved = node.inputs if node.op_type == "Concat" else node.inputs[:1] if node.op_type in _MOVES else []
    found = [end for name in moved for end in _unchosen(graph, name)]
    return [value] if found == list(moved) else found


def _chooses(graph: Graph, index: str) -> bool:
    """Whether an index depends on values, not on shapes and constants alone."""
    waiting, seen = [index], set[str]()
    while waiting:
        name = waiting.pop()
        node = graph.producer(name)
        if node is None or name in seen or node.op_type == "Shape":
            continue
        if node.op_type in _CHOICES:
            return True
        seen.add(name)
        waiting.extend(node.inputs)
    return False


_CHOICES = ("TopK", "NonMaxSuppression", "NonZero", "ArgMax", "ArgMin")
_MOVES = ("Identity", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split")


def _stepped_back(graph: Graph, value: str) -> str | None:
    node = graph.producer(value)
    while node is not None and (
        node.op_type in ("ArgMax", "QuantizeLinear", "Cast", *ACTIVATIONS) or graph.dtype(value) not in _FLOATS
    ):
        value = node.inputs[0]
        node = graph.producer(value)
    return value if graph.dtype(value) in _FLOATS and node is not None else None


def _default_layer(graph: Graph, image: ImageInput, outputs: Sequence[str], classifier: bool) -> str:
    """The automatic layer of a classifier; else the deepest map with weights behind it on the way to every output."""
    views = [Layers(graph, image.name, image.layout, output) for output in outputs]
    if classifier:
        return views[0].automatic.name
    weighted = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    shared = set.intersection(*({c.name for c in view.candidates} for view in views))
    for candidate in reversed(views[0].candidates):
        if candidate.name in shared and any(
            n.op_type in weighted for n in live_path(graph, outputs[0], [candidate.name])[1]
        ):
            return candidate.name
    return views[0].automatic.name


def _prefix_values(
    graph: Graph, image: ImageInput, size: Size, wanted: Sequence[str], rng: np.random.Generator, folder: Any
) -> dict[str, Array]:
    shape = [d if isinstance(d, int) else 1 for d in image.bound(size)]
    if np.dtype(image.dtype).kind in "iu":
        info = np.iinfo(image.dtype)
        x = rng.integers(info.min, info.max, shape, endpoint=True).astype(image.dtype)
    else:
        x = rng.standard_normal(shape).astype(image.dtype)
    model = Builder(graph).model([tensor_info(v, graph.dtype(v), None) for v in wanted])
    return Session(model, folder=folder).run(image.feeds(x), list(dict.fromkeys(wanted)))


def _as_float(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _symbolic(
    head: ModelProto, layer: str, start: Array, feeds: Mapping[str, Array], projections: Mapping[str, Doubles]
) -> Doubles:
    graph = Graph(head, shapes={layer: start.shape, **{n: a.shape for n, a in feeds.items()}})
    op = Builder(graph)
    parts = [
        g
        for output, projection in projections.items()
        if (g := differentiate(graph, op, output, [layer], cotangent=op.floats(projection))[layer]) is not None
    ]
    if not parts:
        return np.zeros(start.shape)
    total = parts[0] if len(parts) == 1 else op.Sum(*parts)
    model = op.model([tensor_info(total, TensorProto.FLOAT, None)])
    return Session(model).run({layer: start, **feeds}, [total])[total].astype(np.float64)


def _evaluators(
    head: ModelProto, layer: str, start: Array, feeds: Mapping[str, Array], projections: Mapping[str, Doubles]
) -> Iterator[tuple[str, Evaluate]]:
    """The projected outputs as a function of the layer, the one to ask first, first: in float64 where onnx.reference is
    right and in time, in float32 before that where it is slow."""
    session = Session(head)

    def float32(a: Array) -> Doubles:
        got = session.run({layer: a.astype(np.float32), **feeds})
        return np.array([float((got[o].astype(np.float64) * p).sum()) for o, p in projections.items()])

    shapes = {layer: start.shape, **{n: a.shape for n, a in feeds.items()}}
    work = multiply_adds(Graph(head, shapes=shapes))
    if work > SMALL_HEAD:
        yield "float32", float32
    if work > LARGE_HEAD:
        return
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(_in_double(head))
    doubles = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feeds.items()}

    def float64(a: Array) -> Doubles:
        got = reference.run(None, {layer: a.astype(np.float64), **doubles})
        names = [o.name for o in head.graph.output]
        return np.array([float((np.asarray(v) * projections[n]).sum()) for n, v in zip(names, got, strict=True)])

    try:
        agrees = np.allclose(float64(start), float32(start), rtol=1e-3, atol=1e-3)
    except Exception as error:  # onnx.reference raises whatever its operators raise; the report names the oracle
        logger.info("onnx.reference does not run the head (%s): differences are taken in float32", error)
        agrees = False
    if agrees:
        yield "float64", float64
    elif work <= SMALL_HEAD:
        yield "float32", float32


def smoothed(model: ModelProto) -> ModelProto:
    """The model in float32 with every QuantizeLinear a Clip to the range that its type can hold, without rounding.

    Raises: UnsupportedError for operators that compute on integers (QLinearConv, ConvInteger, ...).
    """
    whole = _in_type(model, TensorProto.FLOAT, _HALF)
    graph = Graph(whole)
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    real: set[str] = set()  # values that were integers and are the real numbers they stood for
    for node in graph.nodes:
        if node.op_type.startswith(("QLinear", "QGemm", "DynamicQuantize")) or node.op_type.endswith("Integer"):
            raise UnsupportedError(
                f"{node.kind} node `{node.name}` computes on integers and has no float form to compare with",
                "verify the float model that this one was quantised from",
            )
        if node.op_type == "QuantizeLinear":
            nodes.extend(_clipped(graph, node, constants))
            real.update(node.outputs)
        elif node.op_type == "DequantizeLinear" and node.inputs[0] in graph.initializers:
            constants.append(numpy_helper.from_array(_dequantized(graph, node), node.outputs[0]))
        elif node.op_type == "DequantizeLinear" and node.inputs[0] in real:
            nodes.append(helper.make_node("Identity", [node.inputs[0]], node.outputs))
        else:
            nodes.append(node.proto)
            if real & set(node.inputs) and node.op_type != "Shape":
                real.update(node.outputs)
    smooth = ModelProto()
    smooth.CopyFrom(whole)
    del smooth.graph.node[:]
    smooth.graph.node.extend(nodes)
    smooth.graph.initializer.extend(constants)
    for output in smooth.graph.output:
        if output.name in real:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return smooth


def _dequantized(graph: Graph, node: Node) -> Array:
    """A constant's DequantizeLinear: s (q - z), per tensor or along the axis."""
    q, scale = (numpy_helper.to_array(graph.initializers[i]) for i in node.inputs[:2])
    zero = numpy_helper.to_array(graph.initializers[node.inputs[2]]) if len(node.inputs) > 2 else np.zeros(1)
    form = [1] * q.ndim
    if scale.size > 1:
        form[node.attrs.get("axis", 1)] = scale.size
    shift, step = (a.astype(np.float64).reshape(form if a.size > 1 else ()) for a in (zero, scale))
    return ((q.astype(np.float64) - shift) * step).astype(np.float32)


def _clipped(graph: Graph, node: Node, constants: list[TensorProto]) -> list[NodeProto]:
    """QuantizeLinear as Clip(x, s (qmin - z), s (qmax - z)); per axis by Max and Min."""
    scale, zero = graph.constant(node.inputs[1]), graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None:
        raise UnsupportedError(f"the scale of `{node.name}` is not constant", "verify the float model instead")
    dtype = graph.dtype(node.inputs[2]) if zero is not None else node.attrs.get("output_dtype") or TensorProto.UINT8
    low, high = _RANGES.get(dtype, (-128, 127))
    shift = np.zeros_like(scale) if zero is None else zero.astype(np.float64)
    rank = len(graph.shape(node.inputs[0]) or ())
    axis = node.attrs.get("axis", 1)
    form = [1] * rank
    if scale.size > 1 and rank:
        form[axis] = scale.size
    bounds = []
    for name, q in (("low", low), ("high", high)):
        edge = (scale.astype(np.float64) * (q - shift)).astype(np.float32)
        bounds.append(f"{node.outputs[0]}/{name}")
        constants.append(numpy_helper.from_array(edge.reshape(form if scale.size > 1 else ()), bounds[-1]))
    if scale.size == 1:
        return [helper.make_node("Clip", [node.inputs[0], *bounds], node.outputs)]
    above = f"{node.outputs[0]}/above"
    return [
        helper.make_node("Max", [node.inputs[0], bounds[0]], [above]),
        helper.make_node("Min", [above, bounds[1]], node.outputs),
    ]


_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}


def _in_double(model: ModelProto) -> ModelProto:
    return _in_type(model, TensorProto.DOUBLE, (TensorProto.FLOAT, *_HALF))


def _in_type(model: ModelProto, dtype: int, replaced: Sequence[int]) -> ModelProto:
    """The model with every tensor of the `replaced` float types in `dtype`."""
    turned = ModelProto()
    turned.CopyFrom(model)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    for tensor in turned.graph.initializer:
        if tensor.data_type in replaced:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    values: list[ValueInfoProto] = [*turned.graph.input, *turned.graph.output]
    for value in values:
        if value.type.tensor_type.elem_type in replaced:
            value.type.tensor_type.elem_type = dtype
    del turned.graph.value_info[:]
    for node in turned.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in replaced:
                attribute.i = dtype
            if attribute.HasField("t") and attribute.t.data_type in replaced:
                array = numpy_helper.to_array(attribute.t).astype(kind)
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
    return turned
