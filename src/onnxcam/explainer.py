"""The object that people hold: one model, one method, one layer; pictures or tensors in, explanations out."""

import hashlib
import logging
import math
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from html import escape
from importlib import metadata
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, external_data_helper

from onnxcam import _core
from onnxcam.errors import PictureError, UsageError
from onnxcam.explained import Size, explained_model, noise, open_graph
from onnxcam.explanation import BadPicture, Explanation, highest
from onnxcam.graph.blocks import keep_in_blocks, uses_blocks
from onnxcam.graph.index import Graph, branches, split_weights
from onnxcam.graph.layers import Layer
from onnxcam.graph.read import ModelSource, read
from onnxcam.graph.signature import ImageInput, image_input
from onnxcam.methods.head import HeadRunner
from onnxcam.methods.loop import Loop, Progress
from onnxcam.methods.projection import cancelled, combined
from onnxcam.pipeline import Skipped, pipelined, processors, side_by_side
from onnxcam.preprocess import METADATA_KEY, Picture, PictureLike, Preprocess, View, imagenet_defaults, load_picture
from onnxcam.presets import (
    Preset,
    beside,
    fitting,
    inside,
    labels_beside,
    labels_from_json,
    preset,
    read_labels,
    ultralytics,
    ultralytics_labels,
)
from onnxcam.runtime import RUNTIMES, ModelSession, OpenVinoSession, Session, block_size, check_providers, serialised
from onnxcam.saliency import check_options, saliency_maps, volume_maps
from onnxcam.targets import CLASS_INDEX, Question, Scene, TargetSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

LABELS_KEY = "onnxcam.labels"
PIXEL_CLIP = 99.0

ClassLike = str | int | np.integer | None
TargetLike = ClassLike | TargetSpec
PreprocessLike = Preprocess | Mapping[str, Any] | str | os.PathLike[str] | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture as a model-ready sample (1, ...), where it lies there, and what it is asked."""

    picture: Picture
    tensor: npt.NDArray[Any]
    view: View
    question: Any


class Explainer:
    """Explains one model. Immutable after construction and safe to call from many threads.

    model: path, bytes or ModelProto. method: a name that `onnxcam methods` lists; method_options: its own options.
    layer: a value or node name, default the last spatial map; several are fused by `fuse`: `mean`, `product` or `max`.
    layer_layout: `nchw`, `nhwc` or `tokens[:PREFIX]` where the graph does not tell how a named layer lies. score:
    `logit`, `counterfactual`, `probability`, `log-probability`, `rest` or `finer`. output: which output holds the class
    scores. target: what is explained where it is not a class, see `onnxcam.targets`; calls ask it, or another of its
    kind.
    normalize: `minmax`, `max` or `none`. eigen_smooth: the first principal component of alpha A in place of its sum;
    sign: `fixed`, or `raw` as the solver gives it. aug_smooth: the mean of the maps of six inputs, as they are and
    flipped, times 0.9, 1 and 1.1; not normalised again. batch_size, seed, progress(done, total): of methods that run
    the model many times.

    preprocess: a Preprocess, a file or a name (see `presets.preset`), or a mapping of the fields that differ from what
    is stated elsewhere: in the file or name under its key `preset`, in the model's metadata (ours or Ultralytics'), in
    files beside the model, in ImageNet's defaults, the first of these. labels: class names, or a text file with one
    per line, or a JSON file. size: (H, W) where the model leaves it open. input_name: the picture's input, where the
    shapes do not tell. feeds: by name, the values of the inputs beside it: numbers, arrays or .npy files.

    runtime: `onnxruntime` or `openvino` (extra `openvino`), which then runs every session; its one device is the
    provider (`CPU`), `provider_options` its properties: float32 unless `INFERENCE_PRECISION_HINT` says otherwise.

    providers, provider_options, session_options, custom_ops_library, threads: as ONNX Runtime takes them; a provider
    that is not there is an error, never a silent fallback. float32: whether a float16 model computes in float32, which
    CPUs do faster; default those of an opset below 18 on a CPU, where ONNX Runtime does so with the model itself.

    What was decided for the user (layer, stepped-over Softmax, lifted opset, preprocessing) is in `notes`, logged
    once, and in every result's provenance.

    Raises: the designed errors of `onnxcam.errors`.
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        method: str = "gradcam",
        method_options: Mapping[str, Any] | None = None,
        layer: str | Sequence[str] | None = None,
        layer_layout: str | None = None,
        score: str = "logit",
        output: str | None = None,
        target: TargetSpec | None = None,
        normalize: str = "minmax",
        fuse: str = "mean",
        eigen_smooth: bool = False,
        sign: str = "fixed",
        aug_smooth: bool = False,
        batch_size: int = 32,
        seed: int = 0,
        progress: Progress | None = None,
        preprocess: PreprocessLike = None,
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        size: Size | None = None,
        input_layout: str | None = None,
        input_name: str | None = None,
        feeds: Mapping[str, Any] | None = None,
        runtime: str = "onnxruntime",
        providers: Sequence[str] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
        custom_ops_library: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        float32: bool | None = None,
    ) -> None:
        check_options(normalize, fuse)
        check_providers(runtime, providers, provider_options)
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}", "give 1 or more")
        file = read(model)
        properties = {p.key: p.value for p in file.model.metadata_props}
        taken = image_input(file.model, file.name, input_layout, input_name)
        stated, told = _stated(preprocess, properties, file.folder, taken)
        wanted = _asked_size(preprocess, size, properties, stated)
        cpu = (providers or ("cpu",))[0].lower().startswith("cpu")
        graph, image, bound = open_graph(
            file, size=wanted, input_layout=input_layout, input_name=input_name, feeds=feeds,
            float32=float32 if cpu or float32 is not None else False,
        )  # fmt: skip
        x86 = cpu and platform.machine() in ("x86_64", "AMD64")
        values = math.prod(d for d in (graph.shape(image.name) or ())[1:] if isinstance(d, int))
        blocks = x86 and runtime == "onnxruntime" and values >= _FEW
        explained = explained_model(
            graph,
            image,
            method=method,
            layer=layer,
            layer_layout=layer_layout,
            score=score,
            output=output,
            target=target,
            options=method_options,
            lean=True,
            summed=not eigen_smooth,
            channels_last=x86,
            blocks=blocks,
        )
        notes = list(graph.notes)
        dense = (explained.kind.record() or {}).get("kind") == "segmentation"
        self.preprocess, self._preprocess_source = _preprocess(preprocess, image, bound, properties, stated, dense)
        if image.sides != 2:
            self._preprocess_source, told = f"none, {image.plane} are taken as they are", []
        self.labels, labels_told = _labels(labels, properties, explained.head.classes, stated, file.folder)
        notes.extend(explained.notes)
        notes += [f"preprocessing: {self._preprocess_source}", *told, *labels_told]
        self._score = score
        self._normalize = normalize
        self._fuse = fuse
        if eigen_smooth and explained.method.combine not in ("sum", "eigen"):
            raise UsageError(
                f"method `{explained.method.name}` has no weighted sum of channels to smooth", "leave eigen_smooth out"
            )
        self._combine = "eigen" if eigen_smooth else explained.method.combine
        if aug_smooth and np.dtype(image.dtype).kind != "f":
            raise UsageError(
                f"aug_smooth scales the input by 0.9 and 1.1, and `{image.name}` holds integers", "leave it out"
            )
        self._aug_smooth = aug_smooth
        of_class = eigen_smooth or explained.method.name == "eigengradcam"
        self._sign = "sum" if of_class and sign == "fixed" else sign
        self._threads = threads or 0
        self._batch_size = batch_size
        self._seed = seed
        self._progress = progress or (lambda done, total: None)
        self._file = replace(file, model=type(file.model)())

        # Where weights lie beside the file; what a session is made of else needs no place.
        external = any(external_data_helper.uses_external_data(t) for t in graph.initializers.values())
        folder = file.folder if external else None

        if runtime not in RUNTIMES:
            raise UsageError(f"there is no runtime `{runtime}`", f"use one of {', '.join(RUNTIMES)}")
        if runtime == "openvino" and not (session_options is None and custom_ops_library is None):
            raise UsageError(
                "session options and custom operators are ONNX Runtime's", "leave them out with `openvino`"
            )

        def session(
            rewritten: ModelProto | bytes, outputs: Sequence[str] | None = None, before: Graph | None = None
        ) -> ModelSession:
            if runtime == "openvino":
                (config,) = provider_options or ({},)
                device = (providers or ("CPU",))[0].upper()
                return OpenVinoSession(
                    rewritten, device=device, config=config, threads=threads, folder=folder, outputs=outputs
                )
            return Session(
                rewritten,
                providers=providers,
                provider_options=provider_options,
                threads=threads,
                options=session_options,
                custom_ops_library=Path(custom_ops_library) if custom_ops_library is not None else None,
                folder=folder,
                refine=partial(_in_blocks, before) if before is not None else None,
            )

        self._open = session
        # A session holds the weights: it is made of the serialised model alone, when rewritten proto, graph and file
        # are gone; the head behind the layer is cut out before.
        cut_out = explained.target_head if explained.inputs else None
        self._head_model = cut_out() if cut_out is not None else None
        bare = Graph(graph.model, weights={}, shapes=graph.shapes, folder=folder, notes=graph.notes)
        before, pieces = None, sys.maxsize
        deep = _goes_back_through_convolutions(explained.model, len(graph.nodes))
        if deep and blocks and folder is None:
            before = Graph(split_weights(explained.model)[0], weights={}, shapes=graph.shapes)
            pieces = _pictures_in_a_run(graph)
        whole, name = serialised(explained.model), file.name
        self._explained = e = replace(explained, model=ModelProto(), graph=bare, target_head=None)
        del file, graph, explained, cut_out
        self._session = session(whole, e.outputs, before)
        self._spread = threads or getattr(session_options, "intra_op_num_threads", 0) or processors()
        self._alone = self._session.alone if isinstance(self._session, Session) and self._spread > 1 else None
        self._together = image.batch or pieces
        self._heads = [HeadRunner(o.cut.head, session(o.cut.head.model)) for o in e.layers if o.cut is not None]
        notes += self._check_heads(bound) if self._heads else []
        self.notes: tuple[str, ...] = tuple(notes)
        for note in notes:
            logger.info("%s: %s", name, note)
        # Rewriting held the weights several times over; what it freed is given back before the first picture.
        _core.release_free_memory()

    @cached_property
    def layer(self) -> str:
        """The target layer's value name; several are joined by ` + `."""
        return " + ".join(self.layers)

    @property
    def layers(self) -> tuple[str, ...]:
        """The target layers' value names."""
        return tuple(outputs.layer.name for outputs in self._explained.layers)

    @property
    def method(self) -> str:
        return self._explained.method.name

    @property
    def image(self) -> ImageInput:
        """What the model takes: the picture input, its layout, type and sides."""
        return self._explained.image

    @property
    def classes(self) -> int:
        """Number of classes C; 0 where the target is no class."""
        return self._explained.head.classes

    @property
    def provenance(self) -> dict[str, Any]:
        """What the provenance of every result says but the picture and the target, as plain JSON values."""
        return dict(self._facts)

    def __call__(
        self, picture: PictureLike, target: TargetLike = None, feeds: Mapping[str, Any] | None = None
    ) -> Explanation:
        """Explain one picture: a path, a Pillow image, an array (H, W[, 1|3|4]), or anything that speaks DLPack.

        target: a class index, a label, None for the predicted class, or a target of `onnxcam.targets`. feeds: other
        values of inputs beside the picture than the Explainer's.

        Raises: PictureError, UsageError (target), ModelError (the runtime refused).
        """
        self.check()
        p = self.prepare(picture if isinstance(picture, Picture) else load_picture(picture), target)
        (explanation,) = self._explain(p.tensor, [p.question], [p.view], [p.picture], feeds)
        return explanation

    def check(self, target: TargetLike = None) -> None:
        """Raises: UsageError where pictures are not what the model takes, or the target is none of its own."""
        _check_channels(self.preprocess, self._explained.image)
        if target is not None:
            self._questions([target], self._whole)

    def prepare(self, picture: Picture, target: TargetLike = None) -> Prepared:
        """The first half of a call: a picture made a tensor. For models that `check` lets pass.

        Raises: PictureError, UsageError (target).
        """
        tensor, view = self.preprocess(picture)
        return Prepared(picture, tensor, view, self._questions([target], view)[0])

    def explain_prepared(self, batch: Sequence[Prepared]) -> list[Explanation]:
        """The second half, of several pictures in one run of the model. Raises: ModelError (the runtime refused)."""
        return self._explain(
            np.concatenate([p.tensor for p in batch]),
            [p.question for p in batch],
            [p.view for p in batch],
            [p.picture for p in batch],
        )

    @overload
    def stream(
        self,
        pictures: Iterable[PictureLike],
        target: TargetLike | Iterable[TargetLike] = None,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        raise_errors: bool = False,
    ) -> Iterator[Explanation | BadPicture]: ...

    @overload
    def stream(
        self,
        pictures: Iterable[PictureLike],
        target: TargetLike | Iterable[TargetLike] = None,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        raise_errors: bool = False,
        finish: Callable[[Explanation | BadPicture], T],
    ) -> Iterator[T]: ...

    def stream(
        self,
        pictures: Iterable[PictureLike],
        target: TargetLike | Iterable[TargetLike] = None,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        raise_errors: bool = False,
        finish: Callable[[Explanation | BadPicture], Any] | None = None,
    ) -> Iterator[Any]:
        """Explain any number of pictures: a generator, in their order, in memory that does not grow with them.

        Decoding, the model (`batch_size` pictures in one run) and `finish` overlap. Pictures are taken when there is
        room for them, so they may come from an endless iterator: three batches at once are held. Where the Explainer
        has `threads`, as many runs as fit into the processors are made at the same time, each holding one batch more.

        target: one for all, or an iterable with one for each. workers: threads that decode and finish, default one per
        processor. A picture that cannot be read is a BadPicture in its place, or raises PictureError with
        raise_errors. finish: called on those threads with each result; what it returns is yielded in its place, such
        as `lambda e: e.save(...)`. A run in a batch may differ from that of one picture in the last bits.

        Raises: what a call does, when its turn comes; UsageError where there are fewer targets than pictures.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size}", "give 1 or more")
        self.check()

        def asked() -> Iterator[tuple[PictureLike, TargetLike]]:
            one_for_all = target is None or isinstance(target, str | int | np.integer | TargetSpec)
            each: Iterator[TargetLike] = repeat(target) if one_for_all else iter(target)  # type: ignore[arg-type]
            for picture in pictures:
                try:
                    yield picture, next(each)
                except StopIteration:
                    raise UsageError(
                        "there are fewer targets than pictures", "give one target, or one for each"
                    ) from None

        def prepare(item: tuple[PictureLike, TargetLike]) -> Any:
            try:
                return self.prepare(load_picture(item[0]), item[1])
            except PictureError as error:
                if raise_errors:
                    raise
                source = os.fspath(item[0]) if isinstance(item[0], str | os.PathLike) else "<array>"
                return Skipped(BadPicture(source, error))

        def done(_: Any, result: Explanation | BadPicture) -> Any:
            return result if finish is None else finish(result)

        runners = max(1, processors() // self._threads) if self._threads else 1
        return pipelined(
            asked(), prepare, self.explain_prepared, done, batch_size=batch_size, workers=workers, runners=runners
        )

    def explain_classes(self, picture: PictureLike, targets: int | Sequence[TargetLike]) -> list[Explanation]:
        """Explain several targets of one picture, in the order asked for.

        targets: class indices, labels or targets of `onnxcam.targets`, or a number k, which means the k classes that
        score highest.

        What lies before the layer runs once for methods with gradients at one layer, where nothing crosses beside it or
        it lies in tokens; else every target is a sample of a batch.
        """
        self.check()
        loaded = picture if isinstance(picture, Picture) else load_picture(picture)
        tensor, view = self.preprocess(loaded)
        return self._several(tensor, targets, view, loaded)

    def explain_targets(self, x: Any, targets: int | Sequence[TargetLike]) -> list[Explanation]:
        """Explain several targets of one model-ready sample (1, ...): `explain_classes` for tensors."""
        array = self._checked_tensor(x)
        if len(array) != 1:
            raise UsageError(f"{len(array)} samples", "give one, or pass a target for each to `explain_tensor`")
        return self._several(array, targets, self._whole, None)

    def _several(
        self, tensor: npt.NDArray[Any], targets: int | Sequence[TargetLike], view: View, picture: Picture | None
    ) -> list[Explanation]:
        e = self._explained
        wanted = [] if isinstance(targets, int) else list(targets)
        questions = self._questions(wanted, view)
        if not isinstance(targets, int) and not questions:
            return []
        head, results = self._target_head, {}
        if head or isinstance(targets, int):
            # A head that is fed the class needs to know which one is predicted; any question does where it is not.
            first = [] if head and e.index in head.head.chosen else questions[:1]
            asked = self._asked(first or self._questions([None], view))
            results = self._results(tensor, asked, e.shared_outputs if head else None)
        if isinstance(targets, int):
            if e.logits is None:
                raise UsageError(f"the {targets} highest classes of a target that is no class", "give the targets")
            if not 1 <= targets <= self.classes:
                raise UsageError(f"the {targets} highest of {self.classes} classes", f"ask for 1 to {self.classes}")
            best = highest(results[e.logits][0], targets)
            questions = self._questions([int(i) for i in best], view)
        n, asked = len(questions), self._asked(questions)
        repeated = np.repeat(tensor, n, axis=0) if head is None else np.broadcast_to(tensor, (n, *tensor.shape[1:]))
        per_target = self._per_target(head, results, asked, n) if head else self._results(repeated, asked)
        return self._explanations(repeated, per_target, asked, questions, [view] * n, [picture] * n)

    def _per_target(
        self, head: HeadRunner, results: Mapping[str, npt.NDArray[Any]], asked: Mapping[str, npt.NDArray[Any]], n: int
    ) -> dict[str, npt.NDArray[Any]]:
        """The results of one picture for n questions, by the head alone."""
        e = self._explained
        rows, own = self._named(asked), {}
        if e.index in head.head.chosen:
            index = asked[CLASS_INDEX]
            rows[e.index] = own[e.index] = np.where(index < 0, results[e.index], index)
        value, *beside = (results[name] for name in e.before_head)
        runs = [
            head.answers(value, {name: r[start : start + self._batch_size] for name, r in rows.items()}, beside)
            for start in range(0, n, self._batch_size)
        ]
        own |= zip(e.answers, (np.concatenate(parts) for parts in zip(*runs, strict=True)), strict=True)
        return own | {name: np.repeat(results[name], n, axis=0) for name in e.outputs if name not in own}

    @cached_property
    def _target_head(self) -> HeadRunner | None:
        """The head behind the layer, where it can answer several questions about one picture at once."""
        e, model = self._explained, self._head_model
        shapes = [model.shape(name) for name in (model.layer, *model.crossing)] if model else []
        if model is None or not all(shapes):
            return None
        head = HeadRunner(model, self._open(model.model))
        rng = np.random.default_rng(0)
        value, *beside = (rng.random((1, *shape), np.float32) for shape in shapes if shape)
        asked = self._named(self._probe(2))
        if e.index in model.chosen:
            asked[e.index] = asked.pop(e.inputs[CLASS_INDEX])
        return head if head.answers_together(value, asked, beside) else None

    def explain_tensor(
        self,
        x: Any,
        target: TargetLike | Sequence[TargetLike] | npt.NDArray[np.integer] = None,
        feeds: Mapping[str, Any] | None = None,
    ) -> list[Explanation]:
        """Explain model-ready samples: N in, N explanations out, `values` (H, W) of the input's height and width.

        x: array, or anything that speaks DLPack, (N, C, H, W) or (N, H, W, C) as the model takes it, of its type. Of a
        signal (N, C, L) `values` are (L,), of a volume (N, C, D, H, W) they are (D, H, W).
        target: one for all, or N of them. feeds: other values of inputs beside the picture than the Explainer's, with a
        row for all or for each.

        Raises: UsageError where shape, type or number of targets do not fit the model.
        """
        array = self._checked_tensor(x)
        n = len(array)
        if target is None:
            questions = [self._unasked] * n
        elif isinstance(target, str | int | np.integer | TargetSpec):
            questions = self._questions([target], self._whole) * n
        else:
            questions = self._questions(target, self._whole)
        if len(questions) != n:
            raise UsageError(f"{len(questions)} targets for {n} samples", "give one target, or one per sample")
        return self._explain(array, questions, [self._whole] * n, [None] * n, feeds)

    def outputs(self, x: Any) -> dict[str, npt.NDArray[Any]]:
        """The model's own outputs for model-ready samples (N, ...), by name, without the gradient.

        Where the target is no class, also the other values of the model that it reads.
        """
        array, e = self._checked_tensor(x), self._explained
        names = tuple(dict.fromkeys((*e.graph.outputs, *(() if e.kind.has_class else e.kind.reads))))
        rows = {role: np.repeat(value, len(array), axis=0) for role, value in self._probe(1).items()}
        runs = self._runs(array, rows, names)
        return {name: np.concatenate([r[name] for r in runs]) for name in names}

    def built_in(self) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
        """What an exported file holds of the target, by role, and which roles stay inputs of it."""
        return self._explained.kind.built_in(self._bare_scene)

    def _checked_tensor(self, x: Any) -> npt.NDArray[Any]:
        """Raises: UsageError where it is not what the model takes."""
        if type(x) is np.ndarray:
            array = x
        else:
            array = np.asarray(x if hasattr(x, "__array__") or not hasattr(x, "__dlpack__") else np.from_dlpack(x))
        shape, dtype, (one, expected, in_plane, wanted_dtype) = array.shape, array.dtype, self._sample
        # Identity and a single sample first: after a run everything is in no cache, and these touch less of it.
        fits = shape == one or (shape and shape[1:] == expected)
        if not fits or (dtype is not wanted_dtype and dtype != wanted_dtype):
            image = self._explained.image
            wanted = ", ".join(map(str, expected))
            raise UsageError(
                f"`{image.name}` takes {image.dtype} (N, {wanted}), not {dtype} {shape}",
                "pass the tensor that the model itself would be fed",
            )
        return np.ascontiguousarray(array if in_plane == expected else array.reshape(len(array), *in_plane))

    @cached_property
    def _sample(self) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...], np.dtype[Any]]:
        """The shape of a batch of one and of its sample as the model takes it, of that sample with a signal or a volume
        laid out in a plane, and the type."""
        image, size = self._explained.image, self.preprocess.size
        in_plane = (image.channels, *size) if image.layout == "nchw" else (*size, image.channels)
        taken = tuple(image.bound(size)[1:])
        return (1, *taken), taken, in_plane, np.dtype(image.dtype)

    def _questions(self, targets: Iterable[TargetLike], view: View) -> list[Question]:
        scene = self._bare_scene if view is self._whole else Scene(self.labels, view, self._outputs_of)
        return [self._explained.kind.question(target, scene) for target in targets]

    @cached_property
    def _unasked(self) -> Question:
        """What a model-ready sample is asked where nobody says what."""
        return self._questions([None], self._whole)[0]

    @cached_property
    def _bare_scene(self) -> Scene:
        """What a question about a model-ready tensor may refer to."""
        return Scene(self.labels, self._whole, self._outputs_of)

    def _outputs_of(self, picture: PictureLike) -> dict[str, npt.NDArray[Any]]:
        """The model's outputs for a picture."""
        return self.outputs(self.preprocess(load_picture(picture))[0])

    @cached_property
    def _whole(self) -> View:
        """How a model-ready tensor lies on itself."""
        return View.identity(self.preprocess.size)

    def _explain(
        self,
        tensor: npt.NDArray[Any],
        questions: Sequence[Question],
        views: Sequence[View],
        pictures: Sequence[Picture | None],
        feeds: Mapping[str, Any] | None = None,
    ) -> list[Explanation]:
        if len(tensor) == 0:
            return []
        asked = self._asked(questions, feeds)
        return self._explanations(tensor, self._results(tensor, asked), asked, questions, views, pictures)

    def _results(
        self, tensor: npt.NDArray[Any], asked: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """What one run of the model gives for each sample; outputs: default all that an explanation can need."""
        n, share = len(tensor), self._share(len(tensor))
        if n == share:
            return self._run(tensor, asked, n, outputs)
        runs = self._runs(tensor, asked, outputs)
        # What is the same for all samples, constant weights, a run gives once.
        per_sample = {name: len(value) > 1 or share == 1 for name, value in runs[0].items()}
        return {n: np.concatenate([r[n] for r in runs]) if each else runs[0][n] for n, each in per_sample.items()}

    def _resolved(
        self, results: Mapping[str, npt.NDArray[Any]], asked: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """What was asked, with what was left to the model as it decided."""
        resolved = dict(asked)
        for role, output in self._explained.resolved.items():
            resolved[role] = results[output]
        return resolved

    def _explanations(
        self,
        tensor: npt.NDArray[Any],
        results: Mapping[str, npt.NDArray[Any]],
        asked: Mapping[str, npt.NDArray[Any]],
        questions: Sequence[Question],
        views: Sequence[View],
        pictures: Sequence[Picture | None],
    ) -> list[Explanation]:
        e, n = self._explained, len(tensor)
        resolved = self._resolved(results, asked)
        facts: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        # Behind a run every call finds the caches cold; most models need none for this.
        raws = [results[name] for name in e.raws] or self._raws(tensor, results, resolved, facts)
        values = self._maps(raws, views)
        if self._aug_smooth:
            raws, values = self._smoothed(tensor, resolved, raws, values, views)
        if e.image.sides != 2:
            values = [v.reshape(e.image.spatial(self.preprocess.size)) for v in values]
            raws = [raw.reshape(len(raw), *self._sides(raw, o.layer)) for raw, o in zip(raws, e.layers, strict=True)]
        probabilities = results[e.probabilities] if e.probabilities else None
        ranked = probabilities if probabilities is not None else results[e.logits] if e.logits else None
        clip = PIXEL_CLIP if raws[0][0].shape == self.preprocess.size else 100.0
        layer, method, labels, made = self.layer, self.method, self.labels, []
        for i in range(n):
            if problem := e.kind.problem(resolved, i):
                facts[i]["target"] = problem
            index = results[e.index].item(i) if e.index else -1
            made.append(
                Explanation(
                    values=values[i],
                    raws=(raws[0][i],) if len(raws) == 1 else tuple(raw[i] for raw in raws),
                    class_index=index,
                    label=e.kind.label(questions[i], resolved, i, labels)
                    or (labels[index] if labels and index >= 0 else None),
                    score=e.scored(results, i),
                    probability=probabilities.item(i, index) if probabilities is not None else None,
                    region=views[i].region,
                    scores=ranked[i] if ranked is not None else np.zeros(0, np.float32),
                    clip=clip,
                    picture=pictures[i],
                    provenance=self._provenance(pictures[i], questions[i], facts.get(i)),
                    layer=layer,
                    method=method,
                    labels=labels,
                    normalize=self._normalize,
                )
            )
        return made

    def _maps(
        self, raws: Sequence[npt.NDArray[np.float32]], views: Sequence[View]
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]:
        """The saliency maps (H, W) of raw maps (N, h, w); of volumes both are slices one below the other."""
        e = self._explained
        if e.image.sides == 3:
            raws = [raw.reshape(len(raw), *self._sides(raw, o.layer)) for raw, o in zip(raws, e.layers, strict=True)]
            size = e.image.spatial(self.preprocess.size)
            maps = volume_maps(raws, (size[0], size[1], size[2]), self._normalize, self._fuse, self._threads)
            return maps.reshape(len(maps), *self.preprocess.size)
        return saliency_maps(raws, views, self._normalize, self._fuse, self._threads)

    def _sides(self, raw: npt.NDArray[np.float32], layer: Layer) -> tuple[int, ...]:
        """A raw map's own shape: the layer's, or the input's, where the method makes maps of its size."""
        shapes = (layer.layout.shape, self._explained.image.spatial(self.preprocess.size))
        return next((s for s in shapes if len(s) != 2 and math.prod(s) == raw[0].size), raw.shape[1:])

    def _smoothed(
        self,
        tensor: npt.NDArray[Any],
        resolved: Mapping[str, npt.NDArray[Any]],
        raws: list[npt.NDArray[np.float32]],
        values: Iterable[npt.NDArray[np.float32]],
        views: Sequence[View],
    ) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
        """Means of maps and of raw maps over six inputs, the first of which has its own already.

        The mean of {as it is, flipped left to right} times {0.9, 1, 1.1} on the model's input (pytorch-grad-cam).
        """
        width = 3 if self._explained.image.layout == "nchw" else 2
        raw_sums, sums = [r.copy() for r in raws], [v.copy() for v in values]
        for flipped, factor in ((False, 0.9), (False, 1.1), (True, 0.9), (True, 1.0), (True, 1.1)):
            x = np.flip(tensor, width) if flipped else tensor
            x = np.ascontiguousarray(x * tensor.dtype.type(factor))
            found = self._raws(x, self._results(x, resolved), resolved, defaultdict(dict))
            turned = [np.ascontiguousarray(np.flip(raw, 2)) if flipped else raw for raw in found]
            for total, raw in zip(raw_sums, turned, strict=True):
                total += raw
            for total, one in zip(sums, self._maps(turned, views), strict=True):
                total += one
        return [t / np.float32(6) for t in raw_sums], [t / np.float32(6) for t in sums]

    def _raws(
        self,
        x: npt.NDArray[Any],
        results: Mapping[str, npt.NDArray[Any]],
        resolved: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[int, dict[str, Any]],
    ) -> list[npt.NDArray[np.float32]]:
        """The raw map (N, h, w) of each layer; facts: per sample, filled with what the method records."""
        e = self._explained
        if e.raws:
            return [results[name] for name in e.raws]
        if e.method.loop is None:
            pairs = [(results[o.activations], results[o.alpha]) for o in e.layers]
            raws = [combined(*pair, self._combine, self._threads, self._sign) for pair in pairs]
            if self._combine == "sum":
                for pair, raw in zip(pairs, raws, strict=True):
                    for i in np.flatnonzero(cancelled(*pair, raw)):
                        facts[int(i)]["cancelled"] = True
            return raws

        def rows(index: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
            return {role: value[index] for role, value in resolved.items()}

        loop = Loop(
            x=x,
            axes=(2, 3) if e.image.layout == "nchw" else (1, 2),
            index=np.arange(len(x)),
            score=np.array([e.scored(results, i) for i in range(len(x))], np.float32),
            zero=e.image.quantization[1] if e.image.quantization else 0,
            activations=[results[o.activations] for o in e.layers],
            layouts=[o.layer.layout for o in e.layers],
            scores=lambda samples, index: self._scores(samples, rows(index)),
            gradients=lambda samples, index, layer=0: self._gradients(samples, rows(index), layer),
            cuts=[results[o.cut.values[0]] for o in e.layers if o.cut is not None],
            head_scores=partial(self._head_scores, results, resolved),
            options=e.options,
            batch_size=self._batch_size,
            seed=self._seed,
            progress=self._progress,
            facts=facts,
        )
        maps = e.method.loop(loop)
        if e.method.combine == "none":
            return maps
        return [
            combined(results[o.activations], alpha, self._combine, self._threads, self._sign)
            for o, alpha in zip(e.layers, maps, strict=True)
        ]

    def _gradients(
        self, x: npt.NDArray[Any], asked: Mapping[str, npt.NDArray[Any]], layer: int
    ) -> npt.NDArray[np.float32]:
        alpha = self._explained.layers[layer].alpha
        return np.concatenate([results[alpha] for results in self._runs(x, asked, (alpha,))])

    def _head_scores(
        self,
        results: Mapping[str, npt.NDArray[Any]],
        resolved: Mapping[str, npt.NDArray[Any]],
        layer: int,
        sample: int,
        values: npt.NDArray[Any],
    ) -> npt.NDArray[np.float32]:
        cut = self._explained.layers[layer].cut
        assert cut is not None
        one = slice(sample, sample + 1)
        crossing = [results[name][one] for name in cut.values[1:]]
        asked = self._named({role: rows[one] for role, rows in resolved.items()})
        return self._heads[layer].scores(values, crossing, asked)

    def _check_heads(self, size: Size) -> list[str]:
        """Notes about heads that cannot run in batches; a head that differs from the whole model is an error."""
        e = self._explained
        x = noise(e.image, size)
        asked = {role: np.repeat(rows, len(x), axis=0) for role, rows in self._probe(1).items()}
        results = self._run(x, asked, len(x))
        resolved = self._resolved(results, asked)
        notes = []
        for layer, (outputs, head) in enumerate(zip(e.layers, self._heads, strict=True)):
            assert outputs.cut is not None
            values, score = results[outputs.cut.values[0]][:1], e.scored(results, 0)
            if not head.verified(values, score, partial(self._head_scores, results, resolved, layer, 0)):
                name = outputs.layer.name
                notes.append(f"after layer `{name}` the model runs one sample at a time: its batch is built in")
        return notes

    def scores(self, x: npt.NDArray[Any], index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The explained score (n,) of class `index` (n,) for model-ready samples x (n, ...)."""
        return self._scores(x, self._asked(self._questions(index, self._whole)))

    def _scores(self, x: npt.NDArray[Any], asked: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        e = self._explained
        results = self._results(x, asked, e.score_outputs)
        return np.array([e.scored(results, i) for i in range(len(x))], np.float32)

    def _runs(
        self, tensor: npt.NDArray[Any], asked: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """What the model gives for pieces of the samples: as many side by side as there are threads, the rest in turn,
        on all of them."""
        chunks = list(self._chunks(tensor, asked))
        beside = len(chunks) // self._spread * self._spread if self._alone is not None else 0
        several = (partial(self._run, *chunk, outputs, self._alone) for chunk in chunks[:beside])
        found = side_by_side(several, self._spread) if beside else []
        return found + [self._run(*chunk, outputs) for chunk in chunks[beside:]]

    def _share(self, n: int) -> int:
        """How many of n samples are run together: of a fixed batch always that, and no thread is left without."""
        if self._explained.image.batch:
            return self._together
        return min(self._together, n if self._alone is None else -(-n // self._spread))

    def _chunks(
        self, tensor: npt.NDArray[Any], asked: Mapping[str, npt.NDArray[Any]]
    ) -> Iterator[tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], int]]:
        """The samples in pieces of `_share`; of a fixed batch the last is padded by repeating its last sample."""
        batch = self._share(len(tensor))
        for start in range(0, len(tensor), batch):
            x = tensor[start : start + batch]
            rows = {role: value[start : start + batch] for role, value in asked.items()}
            if self._explained.image.batch and (missing := batch - len(x)):
                padded = {role: np.concatenate([v, *[v[-1:]] * missing]) for role, v in rows.items()}
                yield np.concatenate([x, *[x[-1:]] * missing]), padded, len(x)
            else:
                yield x, rows, len(x)

    def _named(self, asked: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What is asked, by the names of the rewritten model's inputs, and what other inputs are always fed."""
        renamed, always = self._inputs
        if renamed:
            asked = {renamed.get(role, role): rows for role, rows in asked.items()}
        return {**always, **asked}

    @cached_property
    def _inputs(self) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
        """The inputs that are not called like their role, and what those with one value for all samples are fed."""
        e = self._explained
        always = {name: other.value for name, other in e.image.others.items() if not other.per_sample}
        names = {**e.inputs, **{_role(name): name for name in e.image.others}}
        return {role: name for role, name in names.items() if name != role}, always

    def _asked(
        self, questions: Sequence[Question], feeds: Mapping[str, Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """What each of N samples is asked, and fed beside the picture: an array (N, ...) per role."""
        asked = _stacked(questions)
        if feeds or self._explained.image.others:
            asked |= self._beside(len(questions), feeds)
        return asked

    def _probe(self, count: int) -> dict[str, npt.NDArray[Any]]:
        """Valid questions and feeds for `count` samples."""
        return self._beside(count) | self._explained.kind.probe(count)

    def _beside(self, count: int, feeds: Mapping[str, Any] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Raises: UsageError for a value that does not fit, or an input that has one value for all samples."""
        others = {**self._explained.image.others}
        for name, given in (feeds or {}).items():
            if name not in others or not others[name].per_sample:
                listed = ", ".join(f"`{n}`" for n, other in others.items() if other.per_sample) or "none"
                raise UsageError(
                    f"input `{name}` has no value of its own for each picture" if name in others else
                    f"there is no input `{name}` beside the picture", f"inputs that do: {listed}"
                )  # fmt: skip
            others[name] = others[name].replaced(given)
            if len(others[name].value) not in (1, count):
                held = len(others[name].value)
                raise UsageError(f"{held} values of `{name}` for {count} samples", "give one, or one for each")
        return {_role(name): other.rows(count) for name, other in others.items() if other.per_sample}

    def _run(
        self,
        x: npt.NDArray[Any],
        asked: Mapping[str, npt.NDArray[Any]],
        wanted: int,
        outputs: Sequence[str] | None = None,
        session: ModelSession | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        e = self._explained
        if e.image.sides != 2:
            x = x.reshape(len(x), *(int(side) for side in e.image.bound(self.preprocess.size)[1:] if side))
        feeds = {e.image.name: x, **self._named(asked)}
        results = (session or self._session).run(feeds, outputs or e.outputs)
        return {name: value[:wanted] for name, value in results.items()} if wanted < len(x) else results

    @cached_property
    def _facts(self) -> dict[str, Any]:
        e = self._explained
        packages = ("onnxcam", "onnx", "numpy", "pillow")
        return {
            "model": {"name": self._file.name, "sha256": self._file.sha256},
            "method": self.method,
            "method_options": dict(e.options),
            "seed": self._seed if e.method.loop else None,
            "batch_size": self._batch_size if e.method.loop else None,
            "layer": self.layer,
            "grids": [list(o.layer.layout.shape) for o in e.layers],
            "score": self._score,
            "normalize": self._normalize,
            "fuse": self._fuse,
            "combine": self._combine,
            "sign": self._sign,
            "aug_smooth": self._aug_smooth,
            "output": e.head.output,
            "logits": e.head.logits,
            **({"target_kind": dict(record)} if (record := e.kind.record()) else {}),
            **({"feeds": {n: _described(o.value) for n, o in e.image.others.items()}} if e.image.others else {}),
            "preprocess": self.preprocess.to_json() if e.image.sides == 2 else None,
            "preprocess_source": self._preprocess_source,
            "providers": list(self._session.providers),
            "threads": self._threads,
            "notes": list(self.notes),
            "versions": {
                **{p: metadata.version(p) for p in packages},
                **self._session.versions,
                "python": platform.python_version(),
            },
        }

    def _provenance(
        self, picture: Picture | None, question: Question, found: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        facts = self._facts.copy()
        facts["picture"] = None if picture is None else {"source": picture.source, "sha256": picture.sha256}
        facts["target"] = question.record
        if found:
            facts["found"] = found
        return facts

    def __repr__(self) -> str:
        return f"<Explainer {self._file.name}: {self.method} at {self.layer!r}, {self.classes} classes>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        names = ", ".join(self.labels[:3]) + (", ..." if len(self.labels) > 3 else "") if self.labels else "no labels"
        height, width = self.preprocess.size
        rows = {
            "model": self._file.name,
            "input": f"{height}x{width} {self.preprocess.channels}, {self._preprocess_source}",
            "method": self.method,
            "layer": self.layer,
            "classes": f"{self.classes}: {names}",
        }
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"


def explain(model: ModelSource, picture: PictureLike, target: TargetLike = None, **options: Any) -> Explanation:
    """Explain one picture with one model; options as for Explainer. For more pictures, keep an Explainer."""
    if isinstance(target, TargetSpec):
        return Explainer(model, target=target, **options)(picture)
    return Explainer(model, **options)(picture, target)


def _described(value: npt.NDArray[Any]) -> Any:
    """A few numbers as they are, many by shape and checksum."""
    if value.size <= 16:
        return value.tolist()
    return {"shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}


def _role(input_name: str) -> str:
    """The role of an input beside the picture; roles of targets have no blank."""
    return f"input {input_name}"


def _stacked(questions: Sequence[Question]) -> dict[str, npt.NDArray[Any]]:
    """What is asked of each of N samples: an array (N, ...) per role."""
    first = questions[0].feeds
    if len(questions) == 1:
        return dict(first)
    return {role: np.concatenate([q.feeds[role] for q in questions]) for role in first}


def _stated(
    given: PreprocessLike, properties: Mapping[str, str], folder: Path | None, image: ImageInput
) -> tuple[Preset | None, list[str]]:
    """What a file, a name, Ultralytics' metadata or the files beside the model say, and notes about what is not used.

    Raises: UsageError where the file or name that was asked for contradicts the model.
    """
    fixed = (image.height, image.width) if image.height and image.width else None
    named = given.get("preset") if isinstance(given, Mapping) else given
    if isinstance(named, str | os.PathLike):
        found = preset(named, fixed)
        if problem := found.contradiction(image):
            raise UsageError(problem, "give the settings that belong to this model, or export it for these")
        return found, []
    if isinstance(given, Preprocess) or METADATA_KEY in properties:
        return None, []
    if (exported := ultralytics(properties, fixed)) is not None:
        return exported, []
    return beside(folder, image) if folder is not None else (None, [])


def _asked_size(
    given: PreprocessLike, size: Size | None, properties: Mapping[str, str], stated: Preset | None
) -> Size | None:
    if size is not None:
        return size
    if isinstance(given, Preprocess):
        return given.size
    if isinstance(given, Mapping) and "size" in given:
        height, width = given["size"]
        return int(height), int(width)
    if stated is not None:
        return stated.size
    return Preprocess.from_json(properties[METADATA_KEY]).size if METADATA_KEY in properties else None


def _preprocess(
    given: PreprocessLike,
    image: ImageInput,
    size: Size,
    properties: Mapping[str, str],
    stated: Preset | None,
    dense: bool,
) -> tuple[Preprocess, str]:
    """The preprocessing and, in words, where it comes from. dense: every pixel is classified, so none is cut off."""
    channels = {1: "gray", 3: "rgb"}.get(image.channels, "rgb")
    fixed: dict[str, Any] = {
        "size": size,
        "layout": image.layout,
        "dtype": image.dtype,
        "quantization": image.quantization,
    }
    if isinstance(given, Preprocess):
        base, source = given, "as given"
    elif stated is not None and stated.settings:
        base, source = stated.preprocess(image, size)
    elif stated is None and METADATA_KEY in properties:
        base, source = Preprocess.from_json(properties[METADATA_KEY]), "from the model's metadata"
    else:
        base, source = _defaults(image, size, channels)
        if dense and stated is None and not (isinstance(given, Mapping) and "crop_pct" in given):
            base, source = replace(base, fit="squash", crop_pct=1.0), f"{source}, of the whole picture"
        source += " (the model says nothing)" if stated is None else ", as asked for"
    if isinstance(given, Mapping):
        changed = {k: v for k, v in given.items() if k not in fixed and k != "preset"}
        if source.startswith(_SPANNED) and changed.keys() & {"mean", "std"}:
            base = replace(base, scale=1 / 255)  # what mean and deviation refer to, unless told otherwise
        base = Preprocess.from_json(
            {**base.to_json(), **{k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}}
        )
        if source.startswith((_IMAGENET, _SPANNED)):
            _check_beside_defaults(changed, base)
        source = f"{', '.join(changed)} as given, the rest {source}" if changed else source
    return replace(base, **fixed), source


def _check_beside_defaults(changed: Mapping[str, Any], settings: Preprocess) -> None:
    """ImageNet's mean and deviation are of pixels in [0, 1]: beside another scale they make noise of the picture."""
    absent = [name for name in ("mean", "std") if name not in changed]
    if "scale" in changed and absent:
        raise UsageError(
            f"`scale` is given without {', '.join(f'`{name}`' for name in absent)}: the defaults are for another scale",
            "give all three, such as `--scale 1 --mean 0 --std 1` for pixels as they are",
        )
    white = 255 * settings.scale
    if "mean" in changed and min(settings.mean) > max(white, 0) * (1 + 1e-6):
        raise UsageError(
            f"mean {min(settings.mean):g} is above every pixel: they lie in 0 to {white:g}",
            "for a mean of pixels of 0 to 255 add `--scale 1`",
        )


# Of pictures of fewer values than this, nodes that move blocks cost more than what they spare.
_FEW = 1024


def _goes_back_through_convolutions(model: ModelProto, own: int) -> bool:
    """Whether what was added holds convolutions; no where there are branches: ONNX Runtime 1.19 cannot save these."""
    back = any(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node[own:])
    return back and not any(map(branches, model.graph.node))


def _pictures_in_a_run(graph: Graph) -> int:
    """How many pictures of a batch a deep gradient is run on together, 1 to 4.

    All activations are kept for the way back, and those of few pictures can be in the cache; but every run reads the
    weights of the convolutions anew. By their number against the number of values that the model makes of a picture.
    """
    convolutions = [n for n in graph.nodes if n.op_type == "Conv" and n.inputs[1] in graph.initializers]
    weights = sum(math.prod(graph.initializers[n.inputs[1]].dims) for n in convolutions)
    shapes = (graph.shape(n.outputs[0]) or () for n in graph.nodes)
    values = sum(math.prod(d for d in shape[1:] if isinstance(d, int)) for shape in shapes)
    return int(min(max(round(4 * weights / max(values, 1)), 1), 4))


def _in_blocks(before: Graph, optimised: ModelProto) -> ModelProto | None:
    return keep_in_blocks(optimised, before, block_size()) if uses_blocks(optimised) else None


def _check_channels(settings: Preprocess, image: ImageInput) -> None:
    """Pictures have as many channels as the model takes; only tensors may have others than 1 or 3, or sides than 2."""
    if image.sides != 2:
        raise UsageError(
            f"`{image.name}` takes {image.plane}, not pictures", "pass model-ready arrays to `explain_tensor`"
        )
    needed = {"gray": 1}.get(settings.channels, 3)
    if needed != image.channels:
        taken = {1: "gray", 3: "rgb"}.get(image.channels)
        raise UsageError(
            f"`{image.name}` takes {image.channels} channel{'s' * (image.channels != 1)}, but `{settings.channels}` "
            f"pictures have {needed}",
            f"choose `--channels {taken}`" if taken else "pass model-ready tensors to `explain_tensor`",
        )


_IMAGENET = "ImageNet's defaults"
_SPANNED = "pixels over the whole range of the integer input"
# What ImageNet's mean and deviation make of black and white: an integer input that spans it was calibrated on that.
_IMAGENET_RANGE = (-2.118, 2.64)


def _defaults(image: ImageInput, size: Size, channels: str) -> tuple[Preprocess, str]:
    if np.dtype(image.dtype).kind == "f":
        base = imagenet_defaults(size, channels if image.channels in (1, 3) else "rgb", image.layout, image.dtype)
        if image.inside is not None:
            return replace(base, mean=(0.0,), std=(1.0,), scale=image.inside), inside(image)
        return base, _IMAGENET
    if image.quantization is not None:
        scale, zero = image.quantization
        info = np.iinfo(image.dtype)
        low, high = scale * (info.min - zero), scale * (info.max - zero)
        if abs(low - _IMAGENET_RANGE[0]) < 0.1 and abs(high - _IMAGENET_RANGE[1]) < 0.1:
            base = imagenet_defaults(size, channels, image.layout, "float32")
            return base, f"{_IMAGENET}, which the input's quantisation spans"
        step = (high - low) / 255
        base = Preprocess(size, crop_pct=0.875, scale=step, mean=(-low,), channels=channels, layout=image.layout)
        return base, _SPANNED
    return imagenet_defaults(size, channels, image.layout, image.dtype), "pixels as they are"


def _cut(names: Sequence[str], classes: int) -> str:
    """How labels that are too many or too few may be meant, in words."""
    if len(names) == classes + 1 and "background" in names[0].casefold():
        return "; the first line is a background's, which this model does not have: `tail -n +2`"
    if len(names) == classes - 1:
        return "; models of TensorFlow often have a background first: put a line before the others"
    return f"; if its first {classes} lines are meant, cut it: `head -n {classes}`" if len(names) > classes else ""


def _labels(
    given: Sequence[str] | str | os.PathLike[str] | None,
    properties: Mapping[str, str],
    classes: int,
    stated: Preset | None,
    folder: Path | None,
) -> tuple[tuple[str, ...] | None, list[str]]:
    """The labels and notes about where they come from, where nobody asked for them.

    Raises: UsageError where the labels given, or our metadata's, are not as many as classes.
    """
    if not classes:
        return None, []
    if given is None and LABELS_KEY in properties:
        names, where = labels_from_json(properties[LABELS_KEY], "the model's metadata"), "the model's metadata"
    elif given is None and (exported := ultralytics_labels(properties)) is not None:
        return fitting(exported, "Ultralytics metadata in the model", classes)
    elif given is None and stated is not None and stated.labels is not None:
        return fitting(stated.labels, stated.labels_source, classes)
    elif given is None:
        return labels_beside(folder, classes) if folder is not None else (None, [])
    elif isinstance(given, str | os.PathLike):
        names, where = read_labels(Path(given)), str(given)
    else:
        names, where = tuple(str(n) for n in given), "the labels given"
    if len(names) != classes:
        raise UsageError(
            f"{where}: {len(names)} labels, but the model has {classes} classes",
            f"give one label per class, in the order of the model's output{_cut(names, classes)}",
        )
    return names, []
