"""Grad-CAM at the automatic layer, tensor in, full-size map out, against a plain run of the untouched model."""

from functools import partial

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row, session, session_options
from onnxcam import Explainer, OnnxCamError

CNNS = ("ResNet-50", "MobileNetV2", "EfficientNet-B0", "ConvNeXt-T")


def overhead(settings: Settings) -> Rows:
    names = CNNS[:2] if settings.quick else tuple(NETWORKS)
    for name in names:
        model = NETWORKS[name]()
        plain = session(model.SerializeToString(), settings)
        try:
            explainer = Explainer(model, session_options=session_options(settings))
        except OnnxCamError as error:
            yield Row("overhead", name, against="plain run", note=f"not explained: {error.message}")
            continue
        for batch in (1, 8) if settings.quick or name not in CNNS[:2] else (1, 8, 32):
            x = pictures(batch)
            yield ratio_row(
                "overhead",
                f"{name}, batch {batch}",
                partial(explainer.explain_tensor, x),
                "plain run",
                partial(plain.run, None, {"image": x}),
                settings,
                target=1.05 if name.startswith("ViT") else 1.03,
                note=f"layer {explainer.layer}",
            )
