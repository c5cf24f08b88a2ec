"""Grad-CAM at the last layer by OpenVINO against OpenVINO's plain run of the untouched model, and its peer there.

OpenVINO runs the batch that the model says: 1. `bf16` is OpenVINO's own choice on processors that have it, ours is
f32. openvino_xai puts Recipro-CAM into the graph; 1.1.0 wants OpenVINO 2024.4 and numpy 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row
from benchmarks.overhead import CNNS
from onnxcam import Explainer

PRECISIONS = ("f32", "bf16")


def second_runtime(settings: Settings) -> Rows:
    try:
        import openvino
    except ImportError:
        yield Row("openvino", "OpenVINO", note="missing: pip install openvino")
        return
    core, x = openvino.Core(), pictures(1)
    capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for name in CNNS[: 2 if settings.quick else None]:
        model = _one_picture(NETWORKS[name]())
        maps: dict[str, npt.NDArray[np.float32]] = {}
        for precision in PRECISIONS:
            if precision.upper() not in (*capable, "F32"):
                yield Row("openvino", f"{name}, {precision}", note="this processor does not have it")
                continue
            config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": settings.threads}

            def compiled(m: Any, config: dict[str, Any] = config) -> Callable[[], object]:
                request = core.compile_model(m, "CPU", config).create_infer_request()
                return partial(request.infer, {0: x}, share_inputs=True)

            read = core.read_model(model.SerializeToString())
            plain = compiled(read)
            explainer = Explainer(
                model, runtime="openvino", provider_options=[{"INFERENCE_PRECISION_HINT": precision}],
                threads=settings.threads,
            )  # fmt: skip
            (explanation,) = explainer.explain_tensor(x, 0)
            maps[precision] = explanation.values
            gap = "" if precision == "f32" else _difference(maps["f32"], maps[precision])
            ours, against = partial(explainer.explain_tensor, x), "plain OpenVINO run"
            note = f"OpenVINO {openvino.__version__.split('-')[0]}{gap}"
            case = f"{name}, {precision}"
            yield ratio_row("openvino", case, ours, against, plain, settings, target=1.05, note=note)
            try:
                from openvino_xai import Task, insert_xai
                from openvino_xai.common.parameters import Method
            except ImportError as error:
                yield Row("openvino", "openvino_xai", note=f"missing: pip install openvino_xai ({error})")
                continue
            theirs = insert_xai(read, task=Task.CLASSIFICATION, explain_method=Method.RECIPROCAM)
            case = f"openvino_xai Recipro-CAM in the graph, {case}"
            yield ratio_row("openvino", case, compiled(theirs), against, plain, settings, target=None)


def _difference(f32: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> str:
    correlation = np.corrcoef(f32.ravel(), other.ravel())[0, 1]
    return f"; map differs from f32's by at most {np.abs(f32 - other).max():.3f} of 1, correlation {correlation:.4f}"


def _one_picture(model: ModelProto) -> ModelProto:
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return fixed
