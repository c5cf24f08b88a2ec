"""Sessions: which runtime runs the explained model, on which device, with how many threads.

ONNX Runtime is an extra, not a dependency: `onnxruntime` and `onnxruntime-gpu` provide the same module and break
each other, so the user chooses one. OpenVINO is a second one.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, external_data_helper, helper

from onnxcam.errors import ModelError, OnnxCamError, UsageError, first_line
from onnxcam.profiling import stage

# What people type for an execution provider.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}

RUNTIMES = ("onnxruntime", "openvino")

Array = npt.NDArray[Any]

logger = logging.getLogger(__name__)


class RuntimeMissingError(OnnxCamError):
    """The runtime that should run the model is not installed."""

    exit_code = 2


def onnxruntime() -> ModuleType:
    """The installed ONNX Runtime module; RuntimeMissingError says what to install."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise RuntimeMissingError(
            "ONNX Runtime is not installed", "`pip install onnxcam[cpu]`, or `onnxcam[gpu]` for CUDA and TensorRT"
        ) from error
    return ort  # type: ignore[no-any-return]


def provider_names(providers: Sequence[str] | None) -> list[str]:
    """Full names of execution providers (`cuda` or `CUDAExecutionProvider`); default CPU. Never a silent fallback.

    Raises: UsageError where a provider is unknown or this ONNX Runtime does not have it.
    """
    available: list[str] = onnxruntime().get_available_providers()
    names = [PROVIDERS.get(p.lower(), p) for p in providers or ["cpu"]]
    missing = [n for n in names if n not in available]
    if missing:
        short = {v: k for k, v in PROVIDERS.items()}
        have = ", ".join(f"`{short.get(a, a)}`" for a in available)
        close = get_close_matches(missing[0].lower(), PROVIDERS, 1) or get_close_matches(missing[0], short, 1)
        extra = "; `pip install onnxcam[gpu]` brings CUDA and TensorRT" if "cuda" in missing[0].lower() else ""
        meant = short.get(close[0], close[0]) if close else ""
        also = f" (did you mean `{meant}`?)" if meant and PROVIDERS[meant] != missing[0] else ""
        raise UsageError(f"execution provider `{missing[0]}` is not available here{also}", f"available: {have}{extra}")
    return names


def check_providers(runtime: str, providers: Any, options: Any) -> None:
    """Raises: UsageError where providers are no list of names, or options none of dictionaries, one for each; or more
    than one is asked of OpenVINO."""
    if providers is not None and (isinstance(providers, str) or not all(isinstance(p, str) for p in providers)):
        raise UsageError(f"providers {providers!r} are no list of names", "give one, such as `providers=['cpu']`")
    if options is not None and (isinstance(options, Mapping) or not all(isinstance(o, Mapping) for o in options)):
        raise UsageError("provider options are no list of dictionaries", "give one dictionary for each provider")
    count = len(providers or ["cpu"])
    if options is not None and len(options) not in (0, count):
        raise UsageError(f"{len(options)} provider options for {count} provider(s)", "give one for each")
    if runtime == "openvino" and count > 1:
        raise UsageError(f"OpenVINO runs on one device, not {count}", "`AUTO:GPU,CPU` lets it choose between several")


_opening = threading.Lock()


class ModelSession(Protocol):
    """A model that runs. Safe to run from many threads."""

    @property
    def providers(self) -> tuple[str, ...]:
        """What computes, by the runtime's own names."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The runtime's package and version."""

    def run(self, feeds: dict[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name. Raises: ModelError where the runtime refuses the run."""


class Session:
    """One ONNX Runtime session over a model, serialised or not. Safe to run from many threads.

    refine: what to make of the model that ONNX Runtime's optimiser leaves behind, before it is run; None leaves it as
    it is. The order of nodes is then that of the refined file. Not for models with external data. `alone`: then also,
    unless there is one thread only, a session of the same model whose runs stay on the thread that calls, so that
    several can go on side by side: all of a run's operators are spread then, and not those alone that ONNX Runtime
    spreads. The two share the weights.
    """

    @stage("session")
    def __init__(
        self,
        model: ModelProto | bytes,
        *,
        providers: Sequence[str] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        threads: int | None = None,
        options: Any = None,
        custom_ops_library: str | Path | None = None,
        folder: Path | None = None,
        refine: Callable[[ModelProto], ModelProto | None] | None = None,
    ) -> None:
        ort = onnxruntime()
        names = provider_names(providers)
        own = options is None
        if own:
            options = ort.SessionOptions()
            options.log_severity_level = 3
        # Options are changed while a model is opened, and those of the caller may be another thread's too.
        with nullcontext() if own else _opening:
            if threads:
                options.intra_op_num_threads = threads
            if custom_ops_library is not None:
                try:
                    options.register_custom_ops_library(str(custom_ops_library))
                except Exception as error:  # onnxruntime raises its own, unrelated classes
                    raise UsageError(
                        f"custom operator library `{custom_ops_library}` cannot be loaded: {first_line(error)}",
                        "give the path of a shared library built for this ONNX Runtime",
                    ) from error
            if folder is not None:
                _configure(options, "session.model_external_initializers_file_folder_path", str(folder))
            whole = model if isinstance(model, bytes) else serialised(model)

            def opened(content: bytes | str) -> Any:
                given = [dict(o) for o in provider_options] if provider_options else None
                return ort.InferenceSession(content, options, providers=names, provider_options=given)

            try:
                self._session, single = (
                    (opened(whole), None) if refine is None else _refined(ort, whole, options, opened, refine)
                )
            except Exception as error:  # onnxruntime raises its own, unrelated classes
                way_out = "" if refine is None else (
                    "; if it is the temporary folder, make room there; `session_options` with a "
                    "`graph_optimization_level` of ORT_ENABLE_EXTENDED go without it"
                )  # fmt: skip
                raise ModelError(
                    f"ONNX Runtime {ort.__version__} cannot load the model: {first_line(error)}",
                    "check that the untouched file loads in onnxruntime; operators of other domains need "
                    f"`custom_ops_library`{way_out}",
                ) from error
        active = self._session.get_providers()
        if names[0] not in active:
            raise UsageError(
                f"ONNX Runtime could not start `{names[0]}` and would have run on `{active[0]}` instead",
                "check the driver and libraries that this provider needs, or choose another with `--provider`",
            )
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = 4  # what fails is raised, and may be a trial
        self.providers: tuple[str, ...] = tuple(active)
        self.versions: Mapping[str, str] = {"onnxruntime": ort.__version__}
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        self.alone: Session | None = None
        if single is not None:
            self.alone = copy(self)
            self.alone._session = single

    @stage("run")
    def run(self, feeds: dict[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name. Raises: ModelError where ONNX Runtime refuses the run."""
        names = outputs or self.outputs
        try:
            values = self._session.run(names, feeds, self._quiet)
        except Exception as error:  # onnxruntime raises its own, unrelated classes
            raise _refused("ONNX Runtime", feeds, error) from error
        return dict(zip(names, values))  # noqa: B905 (ONNX Runtime gives as many as it is asked for)


def _refined(
    ort: ModuleType,
    whole: bytes,
    options: Any,
    opened: Callable[[bytes | str], Any],
    refine: Callable[[ModelProto], ModelProto | None],
) -> tuple[Any, Any]:
    """A session of what `refine` makes of the optimised model, whose weights lie in a file meanwhile; and `alone`."""
    before = {name: getattr(options, name) for name in _CHANGED}
    try:
        place = TemporaryDirectory(prefix="onnxcam-", ignore_cleanup_errors=True)
    except OSError as error:
        logger.warning("no temporary folder (%s): the model runs as ONNX Runtime optimises it, gradients slower", error)
        return opened(whole), None
    with place as folder:
        optimised = Path(folder) / "optimised.onnx"
        try:
            if os.name != "nt":  # where a file that is mapped cannot be removed, the weights stay in the model
                _configure(options, "session.optimized_model_external_initializers_file_name", "weights")
            options.optimized_model_filepath = str(optimised)
            options.log_severity_level = 3  # else it warns that the file is for this machine only
            session = opened(whole)
            refined = refine(ModelProto.FromString(optimised.read_bytes()))
            if refined is None:
                return session, None
            del session
            options.optimized_model_filepath = ""
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # that of the file
            optimised.write_bytes(refined.SerializeToString())
            session = opened(str(optimised))
            if options.intra_op_num_threads == 1:
                return session, None
            options.intra_op_num_threads = 1
            return session, opened(str(optimised))
        finally:
            for name, value in before.items():
                setattr(options, name, value)


_CHANGED = (
    "optimized_model_filepath", "log_severity_level", "graph_optimization_level", "execution_order",
    "intra_op_num_threads",
)  # fmt: skip


def _configure(options: Any, key: str, value: str) -> None:
    """Sets an entry of session options, which may be the caller's; ONNX Runtime warns where one is set twice."""
    try:
        known = options.get_session_config_entry(key)
    except RuntimeError:  # it has none
        known = None
    if known != value:
        options.add_session_config_entry(key, value)


@cache
def block_size() -> int:
    """How many channels ONNX Runtime holds side by side on this machine, where it has a layout of such blocks."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 1, 2])
    domain = "com.microsoft.nchwc"
    turn = helper.make_graph([helper.make_node("ReorderInput", ["x"], ["y"], domain=domain)], "turn", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    session = Session(helper.make_model(turn, opset_imports=opsets, ir_version=8))
    second = np.tile(np.array([0, 1], np.float32), 64).reshape(1, 64, 1, 2)
    return int(session.run({"x": second})["y"].argmax())


class OpenVinoSession:
    """One model compiled by OpenVINO, in float32 unless `config` says otherwise. Safe to run from many threads.

    device: `CPU`, `GPU`, `AUTO`, ... config: OpenVINO's own properties, such as `INFERENCE_PRECISION_HINT`: its default
    on some processors is bfloat16, which is twice as fast and not the model's number format. outputs: those that are
    usually asked for, default all: OpenVINO computes and copies every output of a model, so that it is compiled for
    these, and again when others are first asked for. Requests wait in a pool, one for each thread that runs at a time.

    Raises: RuntimeMissingError, UsageError (device), ModelError (OpenVINO cannot load the model).
    """

    @stage("session")
    def __init__(
        self,
        model: ModelProto | bytes,
        *,
        device: str = "CPU",
        config: Mapping[str, Any] | None = None,
        threads: int | None = None,
        folder: Path | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise RuntimeMissingError("OpenVINO is not installed", "`pip install onnxcam[openvino]`") from error
        core = openvino.Core()
        if device.split(":")[0] not in ("AUTO", "HETERO", "MULTI", *(d.split(".")[0] for d in core.available_devices)):
            raise UsageError(f"OpenVINO has no device `{device}` here", f"it has {', '.join(core.available_devices)}")
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", **(config or {})}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.read_model(_embedded(model, folder))
            self.outputs = tuple(port.get_any_name() for port in self._model.outputs)

            def compiled(asked: tuple[str, ...]) -> _Compiled:
                ports = [port for port in self._model.outputs if port.names & {*asked}]
                part = openvino.Model(ports, self._model.get_parameters(), self._model.friendly_name)
                return _Compiled(core.compile_model(part, device, settings), openvino.Tensor)

            self._compile = compiled
            usual = tuple(outputs or self.outputs)
            self._parts = {usual: compiled(usual)}
            self._compiling = threading.Lock()
        except RuntimeError as error:  # OpenVINO raises nothing else
            raise ModelError(
                f"OpenVINO {openvino.__version__} cannot load the model: {_last_line(error)}",
                'check that the untouched file loads in OpenVINO; `runtime="onnxruntime"` runs every operator',
            ) from error
        self.providers: tuple[str, ...] = (f"OpenVINO {device}",)
        self.versions: Mapping[str, str] = {"openvino": metadata.version("openvino")}

    @stage("run")
    def run(self, feeds: dict[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name. Raises: ModelError where OpenVINO refuses the run."""
        asked = tuple(outputs or self.outputs)
        try:
            return (self._parts.get(asked) or self._part(asked)).run(feeds, asked)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _refused("OpenVINO", feeds, error) from error

    def _part(self, asked: tuple[str, ...]) -> "_Compiled":
        with self._compiling:
            return self._parts.get(asked) or self._parts.setdefault(asked, self._compile(asked))


class _Compiled:
    """A compiled OpenVINO model and its idle requests."""

    def __init__(self, compiled: Any, tensor: Callable[..., Any]) -> None:
        self._compiled, self._tensor = compiled, tensor
        self._inputs, self._outputs = (
            {name: i for i, port in enumerate(ports) for name in port.names}
            for ports in (compiled.inputs, compiled.outputs)
        )
        self._idle: deque[Any] = deque()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # Not `infer(feeds)`, which takes long over a dictionary. A tensor does not hold its array.
            held = {name: np.asarray(value, order="C") for name, value in feeds.items()}
            for name, value in held.items():
                request.set_input_tensor(self._inputs[name], self._tensor(value, True))
            request.infer(share_outputs=True)
            return {name: np.array(request.get_output_tensor(self._outputs[name]).data) for name in outputs}
        finally:
            self._idle.append(request)


def serialised(model: ModelProto) -> bytes:
    """The model as one buffer. Raises: ModelError above the 2 GiB that one may have."""
    if model.ByteSize() >= 2**31:
        raise ModelError(
            "the model has over 2 GiB of weights in memory, more than a runtime takes in one buffer",
            "save it with external data and give its path",
        )
    return bytes(model.SerializeToString())


def _embedded(model: ModelProto | bytes, folder: Path | None) -> bytes:
    """The model with its external data inside."""
    if folder is not None:
        whole = ModelProto.FromString(model) if isinstance(model, bytes) else model
        if any(external_data_helper.uses_external_data(tensor) for tensor in whole.graph.initializer):
            model = ModelProto()
            model.CopyFrom(whole)
            external_data_helper.load_external_data_for_model(model, str(folder))
    return model if isinstance(model, bytes) else serialised(model)


def _refused(runtime: str, feeds: Mapping[str, Array], error: Exception) -> ModelError:
    shapes = ", ".join(f"`{k}` {np.asarray(v).dtype} {np.asarray(v).shape}" for k, v in feeds.items())
    return ModelError(
        f"{runtime} failed on input {shapes}: {first_line(error)}",
        "check the input's size (`--size`), layout and type against `onnxcam check`",
    )


def _last_line(error: BaseException) -> str:
    """OpenVINO puts the reason last, below the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
