"""Saliency, the gradient of the predicted class's logit at the input picture: tensor in, full-size map out, against a
plain run of the untouched model."""

from functools import partial

from onnx import ModelProto

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row, session, session_options
from onnxcam import Explainer, OnnxCamError

TARGETS = {"ResNet-50": 2.4, "MobileNetV2": 3.5, "EfficientNet-B0": 3.5}


def saliency(model: ModelProto, settings: Settings) -> Explainer:
    return Explainer(model, method="saliency", session_options=session_options(settings), threads=settings.threads)


def input_gradient(settings: Settings) -> Rows:
    for name, target in TARGETS.items():
        model = NETWORKS[name]()
        try:
            explainer = saliency(model, settings)
        except OnnxCamError as error:
            yield Row("input_gradient", name, note=f"not explained: {error.message}")
            continue
        plain = session(model.SerializeToString(), settings)
        for batch in (1,) if settings.quick else (1, 16):
            x = pictures(batch)
            yield ratio_row(
                "input_gradient",
                f"{name}, batch {batch}",
                partial(explainer.explain_tensor, x),
                "plain run",
                partial(plain.run, None, {"image": x}),
                settings,
                target=target,
            )
