"""One file that predicts and explains: the model, the explanation and its finish in one ordinary ONNX graph."""

import filecmp
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from onnxcam.errors import ModelError, OutputError, UnsupportedError, UsageError, VerificationError, first_line
from onnxcam.explained import Plan, Size, free_name, noise, open_graph, plan, refuse_another_shape
from onnxcam.explainer import PIXEL_CLIP, ClassLike, Explainer
from onnxcam.finish import Enlarged, clipped, finished, model_input, overlaid, raw_map
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.cost import multiply_adds
from onnxcam.graph.index import Dim, Graph, opset_of
from onnxcam.graph.layers import Layer
from onnxcam.graph.read import MAX_BYTES, ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput, image_input
from onnxcam.methods import METHODS, Method, find_method
from onnxcam.output import write_atomically
from onnxcam.preprocess import PictureLike, Preprocess, View, load_picture
from onnxcam.render import colormap as colormap_of
from onnxcam.runtime import Session, onnxruntime
from onnxcam.saliency import MAX_CELLS, check_options, saliency_maps
from onnxcam.targets import CLASS_INDEX, Target, TargetSpec, class_number

Array = npt.NDArray[Any]

METADATA_KEY = "onnxcam.export"
"""The key of the file's metadata under which the JSON of what was done lies."""

CLASS_INPUTS = ("optional", "required", "none")

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")  # weights alone may be quantised

MAX_CLASSES = 32
"""Classes explained by one run: every one of them has a backward pass of its own in the file."""

MAP_TOLERANCE = 1e-5
PREDICTION_TOLERANCE = 1e-6

BAKED_TOLERANCE = 1e-3
"""Where the file normalises pictures itself: its rounding differs from that of the table that Python uses."""

HALF_TOLERANCE = 4 * 2**-10
"""float16 outputs; and maps where the file makes a float16 input itself: ONNX Runtime drops that rounding."""

# The first ONNX Runtime that runs an opset: tried.
_ONNXRUNTIME = {18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23", 24: "1.24"}


@dataclass(frozen=True)
class Check:
    """How an exported file differs from the model and from the Python path, over `samples` pictures and two targets.

    predictions: `identical`, or the largest difference relative to the output's largest value. heatmap: the largest
    difference of a map in [0, 1] (of other normalisations, relative to its largest value).
    """

    samples: int
    predictions: float
    heatmap: float

    @property
    def identical(self) -> bool:
        """Whether every output is the original's, bit for bit."""
        return self.predictions == 0


@dataclass(frozen=True)
class Exported:
    """What was written: names, size and cost.

    added_nodes, added_bytes: beside the source's. multiply_adds, added_multiply_adds: of a run on one picture, counted
    from the shapes: what convolutions and matrix products take, one for each element of the rest (`graph.cost`). ratio:
    the file's time over the plain model's, the fastest of interleaved runs of each on one picture; None where it was
    not verified. onnxruntime: the first version that runs the file.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    method: str
    layers: tuple[str, ...]
    nodes: int
    added_nodes: int
    bytes: int
    added_bytes: int
    multiply_adds: int
    added_multiply_adds: int
    opset: int
    onnxruntime: str
    check: Check | None
    ratio: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class _Request:
    """What the file shall hold; classes: None for those of an input or the predicted one.

    fixed: per role of the target other than the class, the value that is built in; open_roles: those that are inputs.
    """

    score: str
    normalize: str
    fuse: str
    class_input: str
    classes: tuple[int, ...] | None
    many: bool
    top: int | None
    map_size: Size | None
    with_class: bool
    with_raw: bool
    with_scores: bool
    preprocess: Preprocess | None
    overlay: tuple[str, float] | None
    fixed: Mapping[str, Array]
    open_roles: tuple[str, ...]


def export(
    model: ModelSource,
    path: str | os.PathLike[str],
    *,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    layer: str | Sequence[str] | None = None,
    layer_layout: str | None = None,
    score: str = "logit",
    output: str | None = None,
    normalize: str = "minmax",
    fuse: str = "mean",
    target: ClassLike | TargetSpec | Sequence[ClassLike] = None,
    top: int | None = None,
    all_classes: bool = False,
    class_input: str | None = None,
    map_size: Size | None = None,
    with_class: bool = False,
    with_raw: bool = False,
    with_scores: bool = False,
    picture_input: bool = False,
    overlay: bool = False,
    colormap: str = "jet",
    opacity: float = 0.5,
    preprocess: Preprocess | Mapping[str, Any] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    size: Size | None = None,
    input_layout: str | None = None,
    input_name: str | None = None,
    feeds: Mapping[str, Any] | None = None,
    verify: bool = True,
    picture: PictureLike | None = None,
    threads: int | None = None,
    custom_ops_library: str | os.PathLike[str] | None = None,
    float32: bool | None = None,
) -> Exported:
    """Write one ONNX file that returns the model's own outputs and the heat map; standard operators only are added.

    The model's inputs and outputs stay as they are. Added are the input `class_index` (1,) or (N,) int64, -1 for the
    predicted class, and the output `heatmap` (N, H, W) float32, what `Explainer.explain_tensor` returns as `values`; a
    name that the model has already gets the prefix `onnxcam_`.

    method: one that is computed in the graph. layer, layer_layout, score, output, normalize, fuse, preprocess, labels,
    size, input_layout, method_options: as for Explainer. target: a class, instead of the input; a sequence of several,
    `top` for the K highest or `all_classes` make `heatmap` (N, C, H, W). class_input: `optional` (has a default, which
    ONNX Runtime's native APIs know), `required` (browsers, OpenVINO, tract) or `none`. map_size: (H, W), default the
    input's. with_class: the output `heatmap_class` (N,) or (N, C) int64; with_raw: `heatmap_raw` (N, h, w), signed, of
    the first layer; with_scores: `class_scores` (N, C) float32, what `Explanation.scores` holds. picture_input: the
    file takes pictures (N, H, W, 3) uint8 of the model's own size in place of its tensor; overlay: and returns them
    with the map as `overlay` (N, H, W, 3) uint8.

    target may also be one of `onnxcam.targets`. A class, a region, a rival or an element that it names is built in;
    what it leaves out is predicted in the graph, but for the class, which is the input, and the reference of a
    likeness: the input `reference` (1, D) or (N, D) float32. The model's other inputs stay inputs; feeds: values to
    verify with.

    float32: whether a float16 model computes in float32, for CPUs and browsers, its weights, inputs and outputs still
    float16; default those of an opset below 18, which ONNX Runtime's CPU provider computes so. False for GPUs.

    verify: run the original, the Python path and the new file on `picture`, or on seeded noise, and write nothing where
    they differ. External weights stay in their files, which are copied beside an output in another folder.

    Raises: VerificationError, UsageError, UnsupportedError (methods that finish on the host), OutputError.
    """
    row = find_method(method)
    check_options(normalize, fuse)
    _refuse_host(row)
    file = read(model)
    _refuse_exported(file)
    _refuse_other_than_pictures(image_input(file.model, file.name, input_layout, input_name))
    target_path = Path(path)
    _check_place(target_path, file)
    spec = target if isinstance(target, TargetSpec) else None
    python = Explainer(
        model, target=spec, input_name=input_name, feeds=feeds,
        method=method, method_options=method_options, layer=layer, layer_layout=layer_layout, score=score,
        output=output, normalize=normalize, fuse=fuse, preprocess=preprocess, labels=labels, size=size,
        input_layout=input_layout, threads=threads, custom_ops_library=custom_ops_library, float32=float32,
    )  # fmt: skip
    if map_size is not None and math.prod(map_size) > MAX_CELLS:
        height, width = map_size
        raise UsageError(f"a map of {height}x{width} holds more than {MAX_CELLS:,} values", "choose a smaller map size")
    wanted = size or (python.preprocess.size if preprocess is not None else None)
    graph, image, bound = open_graph(
        file, size=python.preprocess.size, input_layout=input_layout, input_name=input_name, feeds=feeds,
        float32=float32,
    )  # fmt: skip
    chosen = plan(
        graph, image, method=method, layer=layer, layer_layout=layer_layout, target=spec, score=score, output=output,
        options=method_options,
    )  # fmt: skip
    fixed, open_roles = python.built_in()
    named = fixed.pop(CLASS_INDEX, None)
    asked = target if not isinstance(target, TargetSpec) else None if named is None else int(named[0])
    if (with_class or with_scores) and not chosen.kind.has_class:
        raise UsageError("what is explained is no class", "leave out `with_class` and `with_scores`")
    classes = _classes(asked, top, all_classes, python.labels, chosen.head.classes)
    many = all_classes or top is not None or (asked is not None and not isinstance(asked, str | int | np.integer))
    request = _Request(
        score=score,
        normalize=normalize,
        fuse=fuse,
        class_input=_class_input(
            class_input, fixed=classes is not None or top is not None or not chosen.kind.has_class
        ),
        classes=classes,
        many=many,
        top=top,
        map_size=map_size,
        with_class=with_class or top is not None,
        with_raw=with_raw,
        with_scores=with_scores,
        preprocess=python.preprocess if picture_input or overlay else None,
        overlay=_drawing(colormap, opacity, normalize, many, map_size, bound) if overlay else None,
        fixed=fixed,
        open_roles=open_roles,
    )
    dynamic = (image.height is None or image.width is None) and wanted is None and request.preprocess is None
    notes = [n for n in python.notes if not n.startswith("preprocessing") or request.preprocess is not None]
    foreign = sorted({n.domain for n in file.model.graph.node} - {"", "ai.onnx"})
    if foreign:
        notes.append(f"the model itself has operators of {', '.join(foreign)}: only runtimes that have them run it")
    if (image.height is None or image.width is None) and not dynamic:
        notes.append(f"height and width, open in the model, are fixed to {bound[0]}x{bound[1]}")
    complete, names = _assembled(file.model, chosen, request, bound, dynamic, notes)
    _describe(complete, file, chosen, request, bound, names, notes)
    _checked(complete)
    data = complete.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise OutputError(
            f"{path}: the file would have {len(data):,} bytes; one ONNX file holds at most 2 GiB",
            "save the model with external data first: `onnx.save(model, path, save_as_external_data=True)`",
        )
    check, ratio = None, None
    if verify:
        place = file.folder, threads, custom_ops_library
        plain, mine = _sessions([file.model, complete], *place)
        trial = _Trial(plain, mine, python, chosen, request, names)
        samples = trial.samples(bound, picture)
        predictions = trial.predictions(*samples)
        if predictions > 0 and any(n.op_type in _QUANTISERS for n in graph.nodes):
            notes.append(
                f"quantised outputs differ by up to {predictions:.1%} of their largest value from the model's where "
                "ONNX Runtime optimises: it fuses less where the explanation reads a value (compared unoptimised)"
            )
            plain, mine = _sessions([file.model, complete], *place, optimized=False)
            predictions = replace(trial, plain=plain, mine=mine).predictions(*samples)
        trial.refuse(predictions)
        check = Check(len(samples[1]), predictions, trial.heatmap(*samples))
        ratio = trial.ratio(*samples)
    _copy_weights(file, target_path.parent)
    write_atomically(target_path, data)
    size_before = file.model.ByteSize()
    work, added_work = _work(complete, chosen, names, bound)
    return Exported(
        path=target_path,
        inputs=tuple(i.name for i in complete.graph.input),
        outputs=tuple(o.name for o in complete.graph.output),
        method=row.name,
        layers=tuple(one.name for one in chosen.layers),
        nodes=len(complete.graph.node),
        added_nodes=len(complete.graph.node) - len(graph.nodes),
        bytes=len(data),
        added_bytes=len(data) - size_before,
        multiply_adds=work,
        added_multiply_adds=added_work,
        opset=opset_of(complete),
        onnxruntime=_ONNXRUNTIME.get(opset_of(complete), "the newest"),
        check=check,
        ratio=ratio,
        notes=tuple(notes),
    )


def _refuse_other_than_pictures(image: ImageInput) -> None:
    if image.sides != 2:
        raise UnsupportedError(
            f"`{image.name}` takes {image.plane}: files that explain themselves are made of models of pictures",
            "explain them in Python: `Explainer(...).explain_tensor(x)`",
        )


def _work(model: ModelProto, chosen: Plan, names: "_Names", bound: Size) -> tuple[int, int]:
    """Multiply-adds of the whole file and of what was added, for one picture, or the batch that the model fixes."""
    image = chosen.image
    sizes = {image.name: image.bound(bound)}
    if names.picture != image.name:
        sizes = {names.picture: [sizes[image.name][0], *bound, 3]}
    shapes = {name: [d if isinstance(d, int) else 1 for d in dims] for name, dims in sizes.items()}
    graph = Graph(model, shapes={**shapes, **({names.class_index: [1]} if names.class_index else {})})
    own = {o for n in chosen.graph.nodes for o in n.outputs}
    return multiply_adds(graph), multiply_adds(graph, [n for n in graph.nodes if not own & set(n.outputs)])


def _refuse_host(row: Method) -> None:
    """Raises: UnsupportedError for a method of which a part runs on the host, naming those of which none does."""
    if row.loop is not None or row.combine not in ("sum", "none"):
        why = "runs the model many times" if row.loop is not None else "needs an eigenvalue solver"
        able = [m.name for m in METHODS.values() if m.loop is None and m.combine in ("sum", "none")]
        raise UnsupportedError(
            f"method `{row.name}` {why}, which a file cannot do by itself",
            f"explain with it in Python, or export one of: {', '.join(able)}",
        )


def _refuse_exported(file: ModelFile) -> None:
    if any(p.key == METADATA_KEY for p in file.model.metadata_props):
        raise UsageError(
            f"{file.name} is an export of onnxcam already", "export the model that it was made from once more"
        )


def _check_place(path: Path, file: ModelFile) -> None:
    """Raises: OutputError, before any work is done, where the file could not be written."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder", f"name a file in it: `{path / 'model.cam.onnx'}`")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}", f"make it first: `mkdir -p {path.parent}`")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} is not writable", "choose another with `--output`")
    if file.folder is not None and path.resolve() == (file.folder / file.name).resolve():
        raise OutputError(f"{path} is the model itself", "give the export another name")


def _classes(
    target: ClassLike | Sequence[ClassLike],
    top: int | None,
    all_classes: bool,
    labels: tuple[str, ...] | None,
    count: int,
) -> tuple[int, ...] | None:
    """The classes that are fixed at export. Raises: UsageError for unknown, contradictory or too many ones."""
    if (target is not None) + (top is not None) + all_classes > 1:
        raise UsageError("target, top and all_classes exclude each other", "give one of them")
    if top is not None and not 1 <= top <= min(count, MAX_CLASSES):
        raise UsageError(f"the top {top} classes", f"give 1 to {min(count, MAX_CLASSES)}")
    if all_classes:
        fixed = tuple(range(count))
    elif target is None:
        return None
    elif isinstance(target, str | int | np.integer):
        fixed = (class_number(target, labels, count),)
    else:
        fixed = tuple(class_number(t, labels, count) for t in target)
    if not 1 <= len(fixed) <= MAX_CLASSES:
        raise UsageError(
            f"{len(fixed)} classes in one run; at most {MAX_CLASSES} are, since each has a backward pass of its own",
            "leave the classes to the input `class_index`, and run the file once for each",
        )
    return fixed


def _class_input(asked: str | None, fixed: bool) -> str:
    if asked is not None and asked not in CLASS_INPUTS:
        raise UsageError(f"unknown class input `{asked}`", f"use one of {', '.join(CLASS_INPUTS)}")
    if fixed and asked in ("optional", "required"):
        raise UsageError("the class is fixed and an input at the same time", "leave out one of the two")
    return "none" if fixed else asked or "optional"


def _drawing(
    colors: str, opacity: float, normalize: str, many: bool, map_size: Size | None, bound: Size
) -> tuple[str, float]:
    """Raises: UsageError where no overlay can be drawn."""
    colormap_of(colors)
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity {opacity} is outside [0, 1]", "0 is the picture alone, 1 the map alone")
    if normalize == "none" or many or map_size not in (None, bound):
        raise UsageError(
            "an overlay needs one map in [0, 1] of the picture's size",
            "leave out `normalize=none`, several classes and the size of the map, or the overlay",
        )
    return colors, opacity


@dataclass(frozen=True)
class _Names:
    """What the new inputs and outputs are called in this file; None for what it has not."""

    picture: str
    class_index: str | None
    heatmap: str
    heatmap_class: str | None
    heatmap_raw: str | None
    class_scores: str | None
    overlay: str | None
    target_inputs: Mapping[str, str]


def _assembled(
    source: ModelProto, chosen: Plan, request: _Request, bound: Size, dynamic: bool, notes: list[str]
) -> tuple[ModelProto, _Names]:
    """The whole file as a model. Names that had to change are added to `notes`."""
    graph, image = chosen.graph, chosen.image
    taken = chosen.names

    def named(role: str, wanted: bool = True) -> str | None:
        if not wanted:
            return None
        name = free_name(role, taken)
        taken.add(name)
        if name != role:
            notes.append(f"the model has a `{role}` already: the new one is called `{name}`")
        return name

    names = _Names(
        picture=named("picture", request.preprocess is not None) or image.name,
        class_index=named("class_index", request.class_input != "none"),
        heatmap=named("heatmap") or "",
        heatmap_class=named("heatmap_class", request.with_class),
        heatmap_raw=named("heatmap_raw", request.with_raw),
        class_scores=named("class_scores", request.with_scores),
        overlay=named("overlay", request.overlay is not None),
        target_inputs={role: named(role) or "" for role in request.open_roles},
    )
    op = Builder(graph)
    targets = _targets(op, chosen, request, names)
    context = chosen.context(op, targets[0])
    called = {**names.target_inputs, **({CLASS_INDEX: names.class_index} if names.class_index else {})}
    inputs = tuple(i.declared(called[i.role]) for i in chosen.kind.inputs if i.role in called)
    context.settle(*(value for target in targets for value in target.values), inputs=inputs)
    refuse_another_shape(context.graph, targets[0])
    maps = []
    for target in targets:
        context = chosen.context(context.op, target)
        maps.append(chosen.emit(context))
    op = context.op
    front: list[NodeProto] = []
    if request.preprocess is not None:
        made = model_input(op, names.picture, request.preprocess)
        front, op.nodes[:] = list(op.nodes), []
        _rename(front, made, image.name)
    raws, rank = [], 4 if request.many else 3
    for i, layer in enumerate(chosen.layers):
        each = [raw_map(op, layer, *of_class[i], fixed=not dynamic, rank=rank) for of_class in maps]
        raws.append((each[0] if len(each) == 1 else op.Concat(*each, axis=1), _grid(chosen, layer, bound)))
    size: Size | str = request.map_size or bound
    if dynamic and request.map_size is None and not chosen.method.at_input:
        first = 2 if image.layout == "nchw" else 1
        size = op.Shape(image.name, start=first, end=first + 2)
    whole = finished(op, raws, size, request.normalize, request.fuse, rank)
    heatmap = whole.values
    batch: Dim = image.batch or _batch_symbol(graph.model, image.name)
    of_classes: list[Dim] = [batch, len(targets)] if request.many else [batch]
    open_size: list[Dim] = [None, None]
    outputs = []

    def expose(name: str | None, value: str, dtype: int, shape: Sequence[Dim]) -> None:
        if name is not None:
            if not _rename(op.nodes, value, name):
                op.nodes.append(helper.make_node("Identity", [value], [name], name=name))
            outputs.append(tensor_info(name, dtype, list(shape)))

    if names.overlay and request.overlay:
        if raws[0][1] == bound:
            whole = Enlarged(clipped(op, heatmap, bound, PIXEL_CLIP))
        drawn = overlaid(op, names.picture, whole, bound, *request.overlay)
        expose(names.overlay, drawn, TensorProto.UINT8, [batch, *bound, 3])
        outputs.reverse()
    index = [target.index or "" for target in targets]
    if names.heatmap_class and request.many:
        expose(names.heatmap_class, op.Concat(*(op.Unsqueeze(i, [1]) for i in index), axis=1), TensorProto.INT64,
               of_classes)  # fmt: skip
    else:
        expose(names.heatmap_class, index[0], TensorProto.INT64, of_classes)
    raw, grid = raws[0]
    if names.heatmap_raw:
        expose(names.heatmap_raw, raw, TensorProto.FLOAT, [*of_classes, *(open_size if dynamic else grid)])
    if names.class_scores:
        scores = targets[0].probabilities or targets[0].classes or ""
        expose(names.class_scores, scores, TensorProto.FLOAT, [batch, chosen.head.classes])
    expose(names.heatmap, heatmap, TensorProto.FLOAT, [*of_classes, *(open_size if isinstance(size, str) else size)])
    order = (names.heatmap, names.heatmap_class, names.heatmap_raw, names.class_scores, names.overlay)
    outputs.sort(key=lambda o: order.index(o.name))
    model = op.model(outputs, base=graph)
    held = {t.name for t in model.graph.initializer}
    read = {i for node in front for i in node.input} - held
    model.graph.initializer.extend(t for name, t in op.initializers.items() if name in read)
    _prune(model, front, chosen, source)
    if names.class_index and not any(names.class_index in n.input for n in model.graph.node):
        (unused,) = (i for i in model.graph.input if i.name == names.class_index)
        model.graph.input.remove(unused)
        names = replace(names, class_index=None)
        notes.append(f"method `{chosen.method.name}` makes the same map for every class: there is no class to choose")
    _settle_inputs(model, chosen, request, names, bound, dynamic)
    return model, names


def _grid(chosen: Plan, layer: Layer, bound: Size) -> Size:
    """The size of a raw map: a method that makes the map itself makes it at the input's size, unless it says so."""
    return bound if chosen.method.makes_maps and not chosen.method.on_grid else layer.grid


def _targets(op: Builder, chosen: Plan, request: _Request, names: _Names) -> list[Target]:
    """One target per class that is explained in a run."""
    beside = {role: op.constant(value) for role, value in request.fixed.items()} | dict(names.target_inputs)

    def target(index: str) -> Target:
        return chosen.kind.build(op, {CLASS_INDEX: index, **beside}).at(
            chosen.graph, [layer.name for layer in chosen.layers]
        )

    if names.class_index is not None:
        return [target(names.class_index)]
    if request.top is not None:
        scores = target(op.constant(np.array([-1]))).classes or ""
        _, best = op.TopK(scores, [request.top], axis=1, outputs=2)
        return [target(op.Gather(best, np.array(i), axis=1)) for i in range(request.top)]
    return [target(op.constant(np.array([c]))) for c in request.classes or (-1,)]


def _rename(nodes: Sequence[NodeProto], value: str, name: str) -> bool:
    """Call what one of the nodes makes `name`; False where none of them makes it."""
    if not any(value in n.output for n in nodes):
        return False
    for node in nodes:
        for names in (node.input, node.output):
            for i, known in enumerate(names):
                if known == value:
                    names[i] = name
    return True


def _batch_symbol(model: ModelProto, image: str) -> str:
    (declared,) = (i for i in model.graph.input if i.name == image)
    dims = declared.type.tensor_type.shape.dim
    return (dims[0].dim_param if dims else "") or "N"


def _settle_inputs(
    model: ModelProto, chosen: Plan, request: _Request, names: _Names, bound: Size, dynamic: bool
) -> None:
    """Open sizes fixed, the picture in place of the tensor, the default of an optional class."""
    image = chosen.image
    (declared,) = (i for i in model.graph.input if i.name == image.name)
    batch = image.batch or _batch_symbol(model, image.name)
    if request.preprocess is not None:
        declared.CopyFrom(tensor_info(names.picture, TensorProto.UINT8, [batch, *bound, 3]))
    elif not dynamic:
        first = 2 if image.layout == "nchw" else 1
        for dim, size in zip(declared.type.tensor_type.shape.dim[first : first + 2], bound, strict=True):
            dim.dim_value = size
    for value in model.graph.input:
        if value.name in (names.class_index, *names.target_inputs.values()) and image.batch == 1:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    if names.class_index and request.class_input == "optional":
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), names.class_index))


def _prune(model: ModelProto, front: Sequence[NodeProto], chosen: Plan, source: ModelProto) -> None:
    """Put the nodes that make the model's input in front, and leave out added ones that no output needs."""
    own = {o for n in chosen.graph.nodes for o in n.outputs}
    live = {o.name for o in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed([*front, *model.graph.node]):
        if own & set(node.output) or live & set(node.output) or any(node is f for f in front):
            kept.append(node)
            live.update(node.input)
    nodes = [_copied(n) for n in reversed(kept)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    shapes = {v.name for v in source.graph.value_info}
    inferred = [v for v in model.graph.value_info if v.name not in shapes]  # what lifting an opset leaves behind
    for value in inferred:
        model.graph.value_info.remove(value)
    added = [t for t in model.graph.initializer if t.name not in chosen.graph.initializers]
    for tensor in added:
        if tensor.name not in live:
            model.graph.initializer.remove(tensor)


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _describe(
    model: ModelProto,
    file: ModelFile,
    chosen: Plan,
    request: _Request,
    bound: Size,
    names: _Names,
    notes: Sequence[str],
) -> None:
    """What was done, in the file's metadata: the same input gives the same bytes."""
    record = {
        "source": {"name": file.name, "sha256": file.sha256},
        "method": chosen.method.name,
        "method_options": dict(chosen.options),
        "layers": [{"name": one.name, "grid": list(one.grid)} for one in chosen.layers],
        "score": request.score,
        "fuse": request.fuse,
        "normalize": request.normalize,
        "output": chosen.head.output,
        "logits": chosen.head.logits,
        **({"target": dict(record)} if (record := chosen.kind.record()) else {}),
        "classes": list(request.classes) if request.classes is not None else None,
        "top": request.top,
        "class_input": request.class_input,
        "map_size": list(request.map_size) if request.map_size else None,
        "input_size": list(bound),
        "preprocess": request.preprocess.to_json() if request.preprocess else None,
        "overlay": {"colormap": request.overlay[0], "opacity": request.overlay[1]} if request.overlay else None,
        "names": asdict(names),
        "notes": list(notes),
        "versions": {"onnxcam": metadata.version("onnxcam"), "onnx": onnx.__version__},
    }
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(record, sort_keys=True))


def _checked(model: ModelProto) -> None:
    """The whole of `onnx.checker` and strict shape inference, on the graph without its weights' data.

    Raises: VerificationError.
    """
    open_ = ModelProto()
    open_.CopyFrom(model)
    del open_.graph.initializer[:]
    large = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    held = {t.name for t in large}
    open_.graph.initializer.extend(t for t in model.graph.initializer if t.name not in held)
    open_.graph.input.extend(tensor_info(t.name, t.data_type, list(t.dims)) for t in large)
    try:
        onnx.checker.check_model(open_, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(
            f"the exported graph is not valid: {first_line(error)}",
            "please report this with the model; nothing was written",
        ) from error


def _copy_weights(file: ModelFile, folder: Path) -> None:
    """External weights beside an output in another folder than the model's. Raises: OutputError."""
    if file.folder is None or file.folder == folder.resolve():
        return
    locations = {e.value for t in file.model.graph.initializer for e in t.external_data if e.key == "location"}
    for location in sorted(locations):
        source, copy = file.folder / location, folder / location
        try:
            if copy.exists() and not filecmp.cmp(source, copy, shallow=False):
                raise OutputError(f"{copy} exists and is another file", "choose an empty folder, or the model's own")
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = copy.with_name(f".{copy.name}.part")
                shutil.copyfile(source, temporary)
                temporary.replace(copy)
        except OSError as error:
            raise OutputError(
                f"{copy} cannot be written: {error.strerror}", "free space, or export beside the model"
            ) from error


def _sessions(
    models: Sequence[ModelProto],
    folder: Path | None,
    threads: int | None,
    custom_ops_library: str | os.PathLike[str] | None,
    optimized: bool = True,
) -> list[Session]:
    """Sessions that leave each other the cores between runs."""
    found = []
    for model in models:
        options = onnxruntime().SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimized:
            options.graph_optimization_level = onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
        library = Path(custom_ops_library) if custom_ops_library is not None else None
        found.append(Session(model, options=options, threads=threads, custom_ops_library=library, folder=folder))
    return found


@dataclass(frozen=True)
class _Trial:
    """The original, the new file and the Python path, on the same samples."""

    plain: Session
    mine: Session
    python: Explainer
    chosen: Plan
    request: _Request
    names: _Names

    def samples(self, bound: Size, picture: PictureLike | None) -> tuple[Array, Array]:
        """(what the new file takes, what the model takes): the picture, or noise; two where the batch is open."""
        image, baked = self.chosen.image, self.request.preprocess
        if picture is not None and baked is None:
            x = self.python.preprocess(load_picture(picture))[0]
            x = np.concatenate([x] * (image.batch or 1))
            return x, x
        if baked is None:
            x = noise(replace(image, batch=image.batch or 2), bound)
            try:
                self.plain.run(image.feeds(x))
            except ModelError:  # a batch that is built in, whatever the declared input says
                x = x[:1]
            return x, x
        if picture is None:
            pixels = np.random.default_rng(0).integers(0, 256, (image.batch or 2, *bound, 3)).astype(np.uint8)
        else:
            resized = Image.fromarray(load_picture(picture).rgb).resize(bound[::-1])
            pixels = np.stack([np.asarray(resized)] * (image.batch or 1))
        whole = replace(baked, fit="squash")
        return pixels, np.concatenate([whole(load_picture(p))[0] for p in pixels])

    def predictions(self, given: Array, x: Array) -> float:
        """The largest difference of the model's own outputs, as a share of their largest value.

        Raises: VerificationError where another class has the highest score.
        """
        expected = self.plain.run(self.chosen.image.feeds(x))
        largest = 0.0
        for asked in self._asked(x):
            got = self.mine.run(self.feeds(given, asked))
            head = self.chosen.head.output
            if head in expected and not self.request.preprocess and not _same_top(expected[head], got[head]):
                raise VerificationError(
                    f"output `{head}` of the exported file has another highest class than the model's",
                    "verify on a picture (`--picture`) in place of noise; if it stays, report this with the model",
                )
            largest = max(largest, *(_gap(value, got[output]) for output, value in expected.items()))
        return largest

    def refuse(self, predictions: float) -> None:
        """Raises: VerificationError where predictions differ by more than rounding does."""
        kind = self.chosen.graph.dtype(self.chosen.head.output)
        rounding: dict[int, float] = {TensorProto.FLOAT: PREDICTION_TOLERANCE, TensorProto.FLOAT16: HALF_TOLERANCE}
        allowed = rounding.get(kind, 0.0)
        if self.request.preprocess is not None:
            allowed = max(allowed, BAKED_TOLERANCE if kind == TensorProto.FLOAT else 1 / 64)
        if not predictions <= allowed:
            raise VerificationError(
                f"predictions of the exported file differ from the model's by {predictions:.1e}",
                "please report this with the model; nothing was written",
            )

    def heatmap(self, given: Array, x: Array) -> float:
        """The largest difference of a map from the Python path's. Raises: VerificationError."""
        return max(self._heatmap(self.mine.run(self.feeds(given, asked)), x, asked) for asked in self._asked(x))

    def feeds(self, given: Array, asked: Sequence[int]) -> dict[str, Array]:
        """What the new file is fed; a default is left to itself."""
        others = {name: other.rows(len(given)) for name, other in self.chosen.image.others.items()}
        feeds = {self.names.picture: given, **others}
        for role, rows in self._probe().items():
            feeds[self.names.target_inputs[role]] = np.repeat(rows, len(given), axis=0)
        if self.names.class_index and not (self.request.class_input == "optional" and set(asked) == {-1}):
            feeds[self.names.class_index] = np.array(asked)
        return feeds

    def ratio(self, given: Array, x: Array, seconds: float = 0.5) -> float:
        """Time of the new file over the plain model's, the fastest of interleaved runs of each."""
        one = slice(self.chosen.image.batch or 1)
        feeds, plain = self.feeds(given[one], [-1]), self.chosen.image.feeds(x[one])
        outputs = self.mine.outputs, self.plain.outputs
        times: list[tuple[float, float]] = []
        start = time.perf_counter()
        while len(times) < 6 or (len(times) < 200 and time.perf_counter() - start < seconds):
            first = time.perf_counter()
            self.plain.run(plain, outputs[1])
            second = time.perf_counter()
            self.mine.run(feeds, outputs[0])
            times.append((second - first, time.perf_counter() - second))
        plain_best, mine_best = (min(pair[side] for pair in times[1:]) for side in (0, 1))
        return mine_best / plain_best

    def _asked(self, x: Array) -> list[list[int]]:
        """The predicted classes; where they are an input, also others, one for all samples and one for each."""
        if self.names.class_index is None:
            return [[-1]]
        following = (self.python.explain_tensor(x[:1])[0].class_index + 1) % self.python.classes
        each = [[-1] * (len(x) - 1) + [following]] if len(x) > 1 else []
        length = self.chosen.image.batch or 1
        return [[-1] * length, [following] * length, *each]

    def _heatmap(self, got: Mapping[str, Array], x: Array, asked: Sequence[int]) -> float:
        """Raises: VerificationError where the map is not the Python path's."""
        request, count = self.request, len(x)
        columns = [list(asked) * count if len(asked) == 1 else list(asked)]
        if request.top is not None and self.names.heatmap_class:
            columns = got[self.names.heatmap_class].T.tolist()
        elif self.names.class_index is None:
            columns = [[c] * count for c in request.classes or (-1,)]
        maps = [self._maps(x, column) for column in columns]
        expected = np.stack(maps, axis=1) if request.many else maps[0]
        heatmap = got[self.names.heatmap]
        if heatmap.shape == expected.shape and np.isfinite(heatmap).all():
            gap = float(np.abs(heatmap - expected).max()) / (float(expected.max()) or 1.0)
            if gap <= self._map_tolerance:
                return gap
            found = f"by {gap:.1e}"
        else:
            found = f"in shape, {heatmap.shape} for {expected.shape}, or holds what is not a number"
        raise VerificationError(
            f"the heat map of the exported file differs from `Explainer`'s {found}",
            "verify on a picture (`--picture`) in place of noise; if it stays, report this with the model",
        )

    @property
    def _map_tolerance(self) -> float:
        baked = self.request.preprocess
        if baked is None:
            return MAP_TOLERANCE
        return HALF_TOLERANCE if baked.dtype == "float16" else BAKED_TOLERANCE

    def _probe(self) -> dict[str, Array]:
        """What the target's inputs besides the class are fed."""
        return self.chosen.kind.probe(1) if self.names.target_inputs else {}

    def _maps(self, x: Array, classes: Sequence[int]) -> Array:
        kind = self.chosen.kind
        asked = kind.asked(self._probe()) if self.names.target_inputs else None
        explanations = self.python.explain_tensor(x, classes if kind.has_class else asked)
        if self.request.map_size is None:
            return np.stack([e.values for e in explanations])
        raws = [np.stack(of_layer) for of_layer in zip(*(e.raws for e in explanations), strict=True)]
        views = [View.identity(self.request.map_size)] * len(x)
        return np.stack([*saliency_maps(raws, views, self.request.normalize, self.request.fuse)])


def _gap(expected: Array, got: Array) -> float:
    """The largest difference as a share of the largest value expected; infinite where shape or type differ."""
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    scale = float(np.abs(a).max(initial=0, where=finite)) or 1.0
    return float(np.abs(np.where(finite, a - b, 0)).max(initial=0)) / scale


def _same_top(expected: Array, got: Array) -> bool:
    rows, mine = expected.reshape(len(expected), -1), got.reshape(len(got), -1)
    return bool((np.take_along_axis(rows, mine.argmax(1)[:, None], 1)[:, 0] == rows.max(1)).all())
