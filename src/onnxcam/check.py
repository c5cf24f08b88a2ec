"""Is this file explainable? What the model is, its candidate layers, and what stands in the way."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from onnxcam.autodiff.engine import blockers
from onnxcam.errors import UnsupportedError
from onnxcam.explained import Size, input_layer, open_graph
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph, opset_of
from onnxcam.graph.layers import Layer, Layers
from onnxcam.graph.read import ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput
from onnxcam.methods import METHODS, possible_methods
from onnxcam.targets import TargetSpec, default_kind

_NUMBERS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True)
class LayerReport:
    """A candidate layer, the methods possible there, and what keeps gradients from it.

    vanishes: only its class token reaches the score, so that its patches get a gradient of exactly zero.
    """

    layer: Layer
    methods: tuple[str, ...]
    blockers: tuple[str, ...]
    vanishes: bool


@dataclass(frozen=True)
class CheckReport:
    """What `onnxcam check` prints; `problem` says why the model cannot be explained, None when it can.

    scores: the values of the model that what is explained is made of, the first is `head.logits`.
    depth: how many operators lie between the picture and the score; a layer's own depth counts them from the picture.
    """

    file: ModelFile
    graph: Graph
    image: ImageInput
    size: Size
    head: Head | None
    layers: tuple[LayerReport, ...]
    automatic_name: str | None
    problem: UnsupportedError | None
    scores: tuple[str, ...] = ()
    depth: int = 0

    @property
    def automatic(self) -> LayerReport | None:
        """The automatic choice, see `Layers.automatic`."""
        return next((r for r in self.layers if r.layer.name == self.automatic_name), None)

    @property
    def opset(self) -> int:
        """The file's own opset, before lifting."""
        return opset_of(self.file.model)

    @property
    def number_format(self) -> str:
        """`float32`, `float16`, `int8 (QDQ)`, ... by the types of weights and the operators around them."""
        kinds = {n.op_type for n in self.graph.nodes}
        sizes: Counter[str] = Counter()
        for tensor in self.graph.initializers.values():
            if tensor.data_type in _NUMBERS:
                sizes[_NUMBERS[tensor.data_type]] += math.prod(tensor.dims)
        main = sizes.most_common(1)[0][0] if sizes else "unknown"
        if {"QuantizeLinear", "DequantizeLinear"} & kinds:
            return f"{main} (QDQ)"
        return (
            f"{main} (QOperator)"
            if any(k.startswith(("QLinear", "QGemm")) or k.endswith("Integer") for k in kinds)
            else main
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        graph, image, head = self.graph, self.image, self.head
        return {
            "model": self.file.name,
            "sha256": self.file.sha256,
            "producer": f"{self.file.model.producer_name} {self.file.model.producer_version}".strip(),
            "opset": self.opset,
            "ir_version": self.file.model.ir_version,
            "number_format": self.number_format,
            "nodes": len(graph.nodes),
            "notes": list(graph.notes),
            "input": {
                "name": image.name,
                "dtype": image.dtype,
                "layout": image.lies,
                "channels": image.channels,
                "size": list(image.spatial(self.size)),
                "batch": image.batch,
                "quantization": list(image.quantization) if image.quantization else None,
            },
            "outputs": [{"name": o, "shape": list(graph.shape(o) or [])} for o in graph.outputs],
            "head": None
            if head is None
            else {"output": head.output, "logits": head.logits, "activation": head.activation, "classes": head.classes},
            "layers": [layer_json(report) for report in self.layers],
            "automatic": self.automatic.layer.name if self.automatic else None,
            "explainable": self.problem is None,
            "problem": self.problem.message if self.problem else None,
            "hint": self.problem.hint if self.problem else None,
        }


def layer_json(report: LayerReport) -> dict[str, Any]:
    """One candidate layer as plain JSON values."""
    layer = report.layer
    return {
        "name": layer.name,
        "node": layer.node,
        "op": layer.op_type,
        "channels": layer.channels,
        "grid": list(layer.layout.shape),
        "depth": layer.depth + 1,
        "layout": layer.layout.kind,
        "prefix": layer.layout.prefix,
        "vanishes": report.vanishes,
        "methods": list(report.methods),
        "blockers": list(report.blockers),
    }


def check(
    source: ModelSource,
    *,
    size: Size | None = None,
    input_layout: str | None = None,
    input_name: str | None = None,
    feeds: Mapping[str, Any] | None = None,
    target: TargetSpec | None = None,
    automatic: str | None = None,
) -> CheckReport:
    """Read a model and report whether and where it can be explained; candidate layers come best first.

    That is the automatic one, then those that gradients reach, deepest first, then the others.

    input_name, feeds: of models with several inputs, as for Explainer. target: what is explained where it is no class;
    automatic: the layer that serves it best, where that is known.

    Raises: ModelError where the file cannot be read at all; an unsupported model is a report with a `problem`.
    """
    file = read(source)
    graph, image, bound = open_graph(file, size=size, input_layout=input_layout, input_name=input_name, feeds=feeds)
    try:
        kind = default_kind(graph, image) if target is None else target.bind(graph, image)
    except UnsupportedError as error:
        return CheckReport(file, graph, image, bound, None, (), None, error)
    head = kind.head
    blocked = blockers(graph, head.logits)
    found = Layers(graph, image.name, image.layout, *kind.reads)
    picture = input_layer(graph, image)

    def reported(layer: Layer) -> LayerReport:
        methods = possible_methods(graph, head, layer, picture, blocked)
        gone = found.vanishes(layer)
        if gone:
            methods = tuple(m for m in methods if METHODS[m].at_input or not METHODS[m].gradients)
        return LayerReport(layer, methods, tuple(sorted(blocked.get(layer.name, ()))), gone)

    best = (found.before_enlarging if kind.on_map else found.automatic) if found.candidates else None
    automatic = automatic or (best.name if best else None)
    order = sorted(
        map(reported, reversed(found.candidates)),
        key=lambda r: (r.layer.name != automatic, not r.methods, bool(r.blockers), r.vanishes),
    )
    layers = tuple(order)
    problem = None
    if not layers:
        problem = UnsupportedError(
            f"no spatial feature map (N, K, h, w) lies between `{image.name}` and `{head.logits}`",
            "choose a value with `onnxcam explain --layer`; where sizes are dynamic, bind them with `--size`",
        )
    elif not any(report.methods for report in layers):
        kinds = ", ".join(layers[0].blockers)
        problem = UnsupportedError(f"no layer reaches `{head.logits}`: no derivative rule for {kinds}", "report it")
    return CheckReport(file, graph, image, bound, head, layers, automatic, problem, kind.reads, found.depth)
