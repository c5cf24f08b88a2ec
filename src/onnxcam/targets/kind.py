"""What a target is: a scalar per sample, built in the graph, and what chooses it at run time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ValueInfoProto

from onnxcam.autodiff.engine import INTEGERS, live_path
from onnxcam.autodiff.quantized import quantization
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.head import Head, output_listing
from onnxcam.graph.index import Dim, Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.preprocess import View

Array = npt.NDArray[Any]

CLASS_INDEX = "class_index"


@dataclass(frozen=True)
class Target:
    """Value names of a target in the graph: `score` (N,) is what is explained.

    y, cotangent: what is differentiated in its place, such that d score = sum(cotangent dy). index (N,) int64, classes
    and probabilities (N, C): of targets that are one of C classes. resolved: run-time inputs by role, and what they
    were decided to be (-1, predicted, becomes a number). narrow: a copy of y with the gradient at the layers
    alone, see `of_one_token`. source: where there is one, the value from which on the score is computed by a shorter
    way than y is. entry: whether score is `classes` at `index`.
    """

    score: str
    y: str | None = None
    cotangent: str | None = None
    index: str | None = None
    classes: str | None = None
    probabilities: str | None = None
    resolved: Mapping[str, str] = field(default_factory=dict)
    narrow: str | None = None
    source: str | None = None
    entry: bool = False

    def at(self, graph: Graph, layers: Sequence[str]) -> "Target":
        """The target with the shorter way back where it leads to all of these layers."""
        if self.source is None:
            return self
        beyond = [v for v in layers if v != self.source and not live_path(graph, self.source, [v])[1]]
        return self if beyond else replace(self, y=None, cotangent=None)

    @property
    def differentiated(self) -> tuple[str, str | None]:
        """What to differentiate and its cotangent, None for ones."""
        return (self.score, None) if self.y is None else (self.y, self.cotangent)

    @property
    def values(self) -> tuple[str, ...]:
        """What has to be kept of the graph for the target."""
        single = (self.score, self.y, self.cotangent, self.index, self.classes, self.probabilities, self.narrow)
        return tuple(value for value in (*single, *self.resolved.values()) if value is not None)


@dataclass(frozen=True)
class TargetInput:
    """A run-time input of a target: its role, also its name unless the model has that, `TensorProto` type and shape.

    The first dimension counts samples and has a symbol of its own: where the graph broadcasts, 1 and N both feed.
    """

    role: str
    dtype: int
    shape: tuple[Dim, ...]

    def declared(self, name: str) -> ValueInfoProto:
        """The graph input."""
        return tensor_info(name, self.dtype, list(self.shape))


@dataclass(frozen=True)
class Question:
    """What one sample is asked: an array (1, ...) per role. label: the target in words, None for that of its class;
    record: the same as a plain JSON value, for provenance."""

    feeds: Mapping[str, Array]
    label: str | None
    record: Any


@dataclass(frozen=True)
class Scene:
    """What a question may refer to: the labels, how the picture lies on the model's input, the outputs that the model
    gives for another picture."""

    labels: tuple[str, ...] | None
    view: View
    outputs: Callable[[Any], Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True)
class TargetKind(ABC):
    """A kind of target bound to one model.

    head: what methods see of it; `logits` is the value read (the first), `classes` 0 where the target is no class.
    reads: every value of the model that the score is made of. inputs: what chooses at run time. notes: what was
    decided for the user. on_map: the score is read off a map, so that the layers to look at lie before its decoder.
    layer, layer_rule: where to look and why, of kinds that know better than the graph alone.
    """

    head: Head
    reads: tuple[str, ...]
    inputs: tuple[TargetInput, ...] = ()
    notes: tuple[str, ...] = ()
    on_map: bool = False
    layer: str | None = None
    layer_rule: str | None = None

    @abstractmethod
    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        """Append the score; names: per role of `inputs` the value that holds what is asked, an input or a constant."""

    @abstractmethod
    def question(self, asked: Any, scene: Scene) -> Question:
        """What is asked of one sample. asked: what the user passes as `target`.

        Raises: UsageError where it is nothing that this kind can be asked.
        """

    def label(
        self, question: Question, decided: Mapping[str, Array], sample: int, labels: tuple[str, ...] | None
    ) -> str | None:
        """The target of a sample in words, None for the label of its class. decided: (N, ...) per role of what is
        asked, as the model took it."""
        return question.label

    def problem(self, decided: Mapping[str, Array], sample: int) -> str | None:
        """Why there is nothing to explain, in words; arguments as for `label`."""
        return None

    @property
    def has_class(self) -> bool:
        """Whether a class is chosen at run time."""
        return any(i.role == CLASS_INDEX for i in self.inputs)

    def built_in(self, scene: Scene) -> tuple[dict[str, Array], tuple[str, ...]]:
        """What a file that explains by itself holds, by role, and the roles that stay its inputs; of the class
        neither where it is left to the model."""
        feeds = dict(self.question(None, scene).feeds)
        if self.has_class and feeds[CLASS_INDEX][0] < 0:
            del feeds[CLASS_INDEX]
        return feeds, ()

    def asked(self, feeds: Mapping[str, Array]) -> "TargetSpec | None":
        """What to ask for these values of roles that stay inputs of a file."""
        return None

    def probe(self, count: int) -> dict[str, Array]:
        """Some valid questions (count, ...), by role: for trying the graph without a user."""
        return {
            i.role: np.zeros((count, *(d if isinstance(d, int) else 1 for d in i.shape[1:])), np.float32)
            for i in self.inputs
        }

    def record(self) -> Mapping[str, Any]:
        """The kind as plain JSON values, for provenance."""
        return {}


class TargetSpec(ABC):
    """What a user asks for, before there is a model: given to an Explainer it chooses the kind, given to a call also
    what is asked."""

    @abstractmethod
    def bind(self, graph: Graph, image: ImageInput) -> TargetKind:
        """The kind for one model. Raises: UsageError, UnsupportedError where the model has no such thing."""


def output_value(graph: Graph, name: str) -> str:
    """`name`, an output or any other value of the model. Raises: UsageError with the outputs."""
    if name not in graph:
        raise UsageError(f"the model has no output `{name}`", f"its outputs: {output_listing(graph)}")
    return name


def float_outputs(graph: Graph) -> list[str]:
    """The outputs that hold floats, or integers with a scale."""
    return [o for o in graph.outputs if graph.dtype(o) not in INTEGERS or quantization(graph, o) is not None]


def is_map(shape: Sequence[int]) -> bool:
    """Whether a shape per sample is a map: of channels, in more than one row and column."""
    return len(shape) == 3 and sorted(shape)[1] > 1


def sample_shape(graph: Graph, image: ImageInput, value: str) -> tuple[bool, tuple[int, ...]]:
    """Whether a value has the batch in front, and its shape per sample.

    Raises: UnsupportedError where a size is open.
    """
    shape = graph.shape(value)
    own = shape is not None and shape and isinstance(shape[0], int) and shape[0] > 1 and shape[0] != image.batch
    sizes = None if shape is None else shape if own else shape[1:]
    if sizes is None or not all(isinstance(d, int) for d in sizes) or (own and image.batch != 1):
        raise UnsupportedError(
            f"the sizes of `{value}` are not fixed: {list(shape) if shape is not None else 'unknown'}",
            "bind the input's with `--size`, or name a value whose shape does not depend on the picture",
        )
    return not own, tuple(int(d) for d in sizes if isinstance(d, int))
