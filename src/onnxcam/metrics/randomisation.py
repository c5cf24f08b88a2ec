"""Randomisation: a map that stays when the model forgets, or when another class is asked for, explains neither.

`evaluate` compares signed raw maps: ReLU leaves nothing to compare where a randomised model speaks against the class.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, inliner, numpy_helper

from onnxcam.errors import UnsupportedError
from onnxcam.metrics.faithfulness import Array, Doubles

STAGES = 5

# Which input of a layer holds its weights.
_WEIGHTS = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "FusedConv": 1,
    "FusedGemm": 1,
    "FusedMatMul": 1,
    "QGemm": 3,
    "Attention": 1,
}
_THROUGH = frozenset({"DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"})


def randomised_models(
    model: ModelProto, *, stages: int = STAGES, seed: int = 0
) -> Iterator[tuple[tuple[str, ...], ModelProto]]:
    """The model with ever more of its layers' weights shuffled, from the output down: cascading randomisation.

    Yields, per stage, the names of all tensors shuffled so far and a copy of the model. Layers are convolutions and
    matrix products with constant weights, quantised ones too; the layers are dealt evenly to at most `stages`
    stages, and the last has all of them shuffled. Shuffling a tensor keeps its distribution and its type; biases and
    normalisations stay. External data have to be loaded. (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS
    2018, who draw the weights anew.)

    Raises: UnsupportedError where no layer has weights.
    """
    copy = inliner.inline_local_functions(model) if model.functions else model
    names = _weights_from_the_output(copy)
    if not names:
        raise UnsupportedError(
            "the model has no layer with constant weights: nothing can be randomised", "leave `mprt` out"
        )
    rng = np.random.default_rng(seed)
    changed: tuple[str, ...] = ()
    for group in np.array_split(np.arange(len(names)), min(stages, len(names))):
        stage = [names[i] for i in group]
        changed = (*changed, *stage)
        shuffled = ModelProto()
        shuffled.CopyFrom(copy)
        for name in stage:
            _shuffle(_tensor(shuffled, name), rng)
        copy = shuffled
        yield changed, shuffled


def _weights_from_the_output(model: ModelProto) -> list[str]:
    producers = {output: node for node in model.graph.node for output in node.output}
    initializers = {t.name for t in model.graph.initializer}
    names: dict[str, None] = {}
    for node in reversed(model.graph.node):
        if node.op_type in _WEIGHTS and len(node.input) > _WEIGHTS[node.op_type]:
            name = _constant(node.input[_WEIGHTS[node.op_type]], producers, initializers)
            if name is not None:
                names[name] = None
    return list(names)


def _constant(value: str, producers: dict[str, NodeProto], initializers: set[str]) -> str | None:
    """The constant that a value is a view of."""
    while value not in initializers:
        node = producers.get(value)
        if node is not None and node.op_type == "Constant":
            return value
        if node is None or node.op_type not in _THROUGH:
            return None
        value = node.input[0]
    return value


def _tensor(model: ModelProto, name: str) -> TensorProto:
    values = (a.t for n in model.graph.node if name in n.output for a in n.attribute if a.name == "value")
    tensor: TensorProto = next(chain((t for t in model.graph.initializer if t.name == name), values))
    return tensor


def _shuffle(tensor: TensorProto, rng: np.random.Generator) -> None:
    values = numpy_helper.to_array(tensor)
    shuffled = rng.permutation(values.ravel()).reshape(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(shuffled, tensor.name))


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's correlation of two maps of one shape, in [-1, 1], equal values at their mean rank; NaN for a
    constant map."""
    r, s = _ranks(a), _ranks(b)
    r, s = r - r.mean(), s - s.mean()
    norms = np.sqrt((r @ r) * (s @ s))
    return float((r @ s) / norms) if norms > 0 else float("nan")


def _ranks(values: Array) -> Doubles:
    _, group, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Doubles = last - (counts - 1) / 2
    return mean[group.ravel()]
