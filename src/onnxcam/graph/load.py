"""From a parsed model to the Graph that rules hold for: checked, IR >= 8, functions inlined, opset >= 18.

The steps work on the graph without its weights, so they cost nothing per weight. Lifting an old opset changes the
graph, so the lifted model is compared with the original on one input and refused on a mismatch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    version_converter,
)

from onnxcam.errors import ModelError, UnsupportedError, VerificationError, first_line
from onnxcam.graph.branches import without_known_branches
from onnxcam.graph.half import has_half, in_float32
from onnxcam.graph.head import before_activation
from onnxcam.graph.index import Dim, Graph, opset_of, split_weights, stub, subgraphs
from onnxcam.graph.read import ModelFile

logger = logging.getLogger(__name__)

MIN_OPSET = 18
MIN_IR = 8

# Runs a model on one seeded input; returns its outputs. Injected, so that this package knows no runtime.
Run = Callable[[ModelProto], Sequence["np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]]


def load(
    file: ModelFile,
    shapes: Mapping[str, Sequence[Dim]] | None = None,
    run: Run | None = None,
    float32: bool | None = None,
) -> Graph:
    """Check, clean and lift a model; bind input dimensions to `shapes`.

    run: how to run a model on one input, to verify a lifted opset; without it a model below opset 18 is refused.
    float32: whether a float16 model computes in float32 (`graph.half`), default where it was lifted.

    Raises: ModelError (checker), UnsupportedError (opset cannot be lifted), VerificationError (lifted model differs).
    """
    lean, weights = split_weights(_cleaned(file.model))
    _hide_unregistered(lean)
    _check(lean, weights, file.name)
    _reveal_unregistered(lean)
    notes: list[str] = []
    if lean.functions:
        try:
            lean = onnx.inliner.inline_local_functions(lean)
        except Exception as error:  # RuntimeError, and what its bindings make of others
            raise ModelError(
                f"{file.name}: its functions cannot be inlined: {first_line(error)}", "export it without functions"
            ) from error
        notes.append("model-local functions inlined")
    lean, weights, folded = without_known_branches(lean, weights, shapes)
    if folded:
        notes.append(f"{folded} If with a known condition replaced by the branch that runs")
    if opset_of(lean) < MIN_OPSET:
        before = opset_of(lean)
        _hide_unregistered(lean)
        lean = _lifted(lean, weights, file.name)
        _reveal_unregistered(lean)
        notes.append(f"opset {before} lifted to {MIN_OPSET}")
        float32 = True if float32 is None else float32
    if float32 and has_half(lean):
        wide = in_float32(lean)
        lean = wide or lean
        notes.append(
            "float16 stays, which is slow on CPUs: the model has branches or operators of other domains"
            if wide is None
            else "float16 is computed in float32, as ONNX Runtime does on CPUs (`float32=False` keeps it, for GPUs)"
        )
    if opset_of(file.model) < MIN_OPSET:
        _verify(file, Graph(lean, weights=weights), opset_of(file.model), run)
    _constants_to_initializers(lean)
    return Graph(lean, weights=weights, shapes=shapes, folder=file.folder, notes=tuple(notes))


def _cleaned(model: ModelProto) -> ModelProto:
    """IR >= 8 and no initializer listed as an input (IR 3 demands it; later versions read it as an optional input)."""
    constants = {t.name for t in model.graph.initializer}
    if model.ir_version >= MIN_IR and not any(i.name in constants for i in model.graph.input):
        return model
    clean = ModelProto()
    clean.CopyFrom(model)
    clean.ir_version = max(model.ir_version, MIN_IR)
    inputs = [i for i in clean.graph.input if i.name not in constants]
    del clean.graph.input[:]
    clean.graph.input.extend(inputs)
    return clean


# ONNX Runtime's optimiser writes the first two into the default domain, in which ONNX has them later or never. The last
# is called deprecated from 18 to 20, where it means something else than from 21 on, and runs all the same.
_UNREGISTERED = ("LayerNormalization", "SimplifiedLayerNormalization")
_DEPRECATED = "GroupNormalization"
_HIDDEN = "onnxruntime.unregistered"


def _hide_unregistered(model: ModelProto) -> None:
    """Move operators that the model's opset does not have to a domain that checker and converter pass over."""
    opset = opset_of(model)
    names = {name for name in _UNREGISTERED if not onnx.defs.has(name, opset)}
    if onnx.defs.has(_DEPRECATED, opset) and onnx.defs.get_schema(_DEPRECATED, opset).deprecated:
        names.add(_DEPRECATED)
    hidden = [n for n in _nodes(model) if n.domain in ("", "ai.onnx") and n.op_type in names]
    for node in hidden:
        node.domain = _HIDDEN
    for scope in (model, *model.functions) if hidden else ():
        scope.opset_import.append(helper.make_opsetid(_HIDDEN, 1))


def _reveal_unregistered(model: ModelProto) -> None:
    for node in _nodes(model):
        if node.domain == _HIDDEN:
            node.domain = ""
    for scope in (model, *model.functions):
        kept = [o for o in scope.opset_import if o.domain != _HIDDEN]
        del scope.opset_import[:]
        scope.opset_import.extend(kept)


def _nodes(scope: ModelProto | FunctionProto | GraphProto) -> Iterator[NodeProto]:
    """Every node of a model, those of its functions and subgraphs included."""
    if isinstance(scope, ModelProto):
        for part in (scope.graph, *scope.functions):
            yield from _nodes(part)
        return
    for node in scope.node:
        yield node
        for graph in (g for a in node.attribute for g in subgraphs(a)):
            yield from _nodes(graph)


def _weights_as_inputs(lean: ModelProto, weights: Mapping[str, TensorProto]) -> ModelProto:
    """The graph with each weight stub as a typed input, which checker and converter accept without data."""
    open_ = ModelProto()
    open_.CopyFrom(lean)
    kept = [t for t in open_.graph.initializer if t.name not in weights]
    del open_.graph.initializer[:]
    open_.graph.initializer.extend(kept)
    open_.graph.input.extend(
        helper.make_tensor_value_info(name, t.data_type, list(t.dims)) for name, t in weights.items()
    )
    return open_


def _check(lean: ModelProto, weights: Mapping[str, TensorProto], name: str) -> None:
    try:
        onnx.checker.check_model(_weights_as_inputs(lean, weights))
    except Exception as error:  # ValidationError, and what its bindings make of a message that is no text
        raise ModelError(
            f"{name} is not a valid ONNX model: {first_line(error)}", "export it again, with a newer exporter"
        ) from error


def _lifted(lean: ModelProto, weights: Mapping[str, TensorProto], name: str) -> ModelProto:
    version = opset_of(lean)
    try:
        lifted = version_converter.convert_version(_weights_as_inputs(lean, weights), MIN_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own unregistered C++ errors
        raise UnsupportedError(
            f"{name}: opset {version} cannot be lifted to {MIN_OPSET}: {first_line(error)}",
            "export the model with opset 18 or newer",
        ) from error
    inputs = [i for i in lifted.graph.input if i.name not in weights]
    del lifted.graph.input[:]
    lifted.graph.input.extend(inputs)
    lifted.graph.initializer.extend(map(stub, weights.values()))
    lifted.ir_version = max(lean.ir_version, MIN_IR)
    foreign = {o.domain for o in lifted.opset_import}
    lifted.opset_import.extend(o for o in lean.opset_import if o.domain not in foreign)
    return lifted


def _verify(file: ModelFile, lifted: Graph, before: int, run: Run | None) -> None:
    if run is None:
        raise VerificationError(
            f"{file.name}: opset {before} was lifted to {MIN_OPSET} but cannot be compared with the original",
            "install ONNX Runtime (`pip install onnxcam[cpu]`), or export the model with opset 18 or newer",
        )
    # Behind a saturated Softmax any change is invisible: what goes into it is compared too.
    inner = [v for o in lifted.outputs if (v := before_activation(lifted, o)) is not None]
    watched = [v for v in dict.fromkeys(inner) if v in Graph(file.model) and v not in lifted.outputs]
    expected, got = (run(_with_outputs(model, watched)) for model in (file.model, lifted.complete(lifted.model)))
    for output, original, new in zip((*lifted.outputs, *watched), expected, got, strict=True):
        a, b = original.astype(np.float64), new.astype(np.float64)
        if a.shape != b.shape:
            same, gap = False, f"{a.shape} became {b.shape}"
        elif original.dtype.kind == "f":
            scale = float(np.max(np.abs(a), initial=1e-6, where=np.isfinite(a)))
            same = np.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
            gap = f"they differ by up to {np.max(np.abs(a - b)):.3g}"
        else:
            same, gap = bool(np.mean(a != b) <= 1e-3), f"{np.mean(a != b):.1%} of the values differ"
        if not same:
            raise VerificationError(
                f"{file.name}: lifting opset {before} to {MIN_OPSET} changed output `{output}`: {gap}",
                "export the model with opset 18 or newer",
            )
    logger.info("%s: opset %d lifted to %d and verified against the original", file.name, before, MIN_OPSET)


def _with_outputs(model: ModelProto, values: Sequence[str]) -> ModelProto:
    if not values:
        return model
    wider = ModelProto()
    wider.CopyFrom(model)
    wider.graph.output.extend(ValueInfoProto(name=value) for value in values)
    return wider


def _constants_to_initializers(lean: ModelProto) -> None:
    """Constant nodes of the main graph become initializers: one place where constants are found."""
    outputs = {o.name for o in lean.graph.output}
    moved = []
    for i, node in enumerate(lean.graph.node):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or node.output[0] in outputs:
            continue
        tensor = _constant_tensor(node.attribute[0]) if len(node.attribute) == 1 else None
        if tensor is not None:
            tensor.name = node.output[0]
            lean.graph.initializer.append(tensor)
            moved.append(i)
    for i in reversed(moved):  # `remove` would compare every node before each
        del lean.graph.node[i]


def _constant_tensor(attribute: AttributeProto) -> TensorProto | None:
    value = helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            return tensor
        case "value_float" | "value_floats":
            return numpy_helper.from_array(np.asarray(value, np.float32))
        case "value_int" | "value_ints":
            return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


def declared_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Graph inputs that have to be fed: those without an initializer."""
    constants = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]
