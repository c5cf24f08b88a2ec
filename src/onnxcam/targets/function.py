"""A function of one's own, written with the node builder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.kind import Question, Scene, Target, TargetKind, TargetSpec, float_outputs, output_value


@dataclass(frozen=True)
class Function(TargetSpec):
    """score = function(op, outputs), written in ONNX operators: `lambda op, outputs: op.ReduceSum(outputs["y"], [1],
    keepdims=0)`.

    `op.Anything(...)` appends a node and returns the name of its value; numbers, lists and arrays become constants.
    outputs: value names, by output, in float32. What comes back has the shape (N,). Operators as in the newest of opset
    18 and the model's own. reads: which outputs, or other values of the model, are handed over; default the float
    outputs. label: in words.
    """

    function: Callable[[Builder, Mapping[str, str]], str]
    reads: tuple[str, ...] = ()
    label: str = "a function of the outputs"

    def bind(self, graph: Graph, image: ImageInput) -> "FunctionKind":
        reads = tuple(output_value(graph, name) for name in self.reads) or tuple(float_outputs(graph))
        if not reads:
            raise UsageError("the model has no float outputs", "name values of it in `reads`")
        return FunctionKind(head=Head(reads[0], reads[0], None, 0), reads=reads, default=self)


@dataclass(frozen=True, kw_only=True)
class FunctionKind(TargetKind):
    """`Function` bound to a model."""

    default: Function

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        with op.scope("target"):
            score = self.default.function(op, {name: real_value(op, name) for name in self.reads})
        if not isinstance(score, str):
            raise UsageError(f"the target's function returned {type(score).__name__}", "return the value of a node")
        return Target(score)

    def question(self, asked: Any, scene: Scene) -> Question:
        if asked is not None and asked != self.default:
            raise UsageError(f"the Explainer was made for {self.default.label}", "make another Explainer")
        return Question({}, self.default.label, self.default.label)

    def record(self) -> Mapping[str, Any]:
        return {"kind": "function", "reads": list(self.reads)}
