"""The gradient of the predicted class's logit at the input picture, against a plain run of the untouched model."""

from functools import partial

from onnx import ModelProto, TensorProto

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row, session
from onnxcam import OnnxCamError
from onnxcam.autodiff import differentiate
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph

TARGETS = {"ResNet-50": 2.4, "MobileNetV2": 3.5, "EfficientNet-B0": 3.5}


def with_input_gradient(model: ModelProto) -> ModelProto:
    """The model with one more output, `gradient`, shaped like `image`: d(largest logit) / d(image)."""
    graph = Graph(model, shapes={"image": ["N", 3, 224, 224]})
    op = Builder(graph)
    largest = op.Equal("logits", op.ReduceMax("logits", [1], keepdims=1))
    gradient = differentiate(graph, op, "logits", ["image"], op.Cast(largest, to=TensorProto.FLOAT))["image"]
    op.nodes[-1].output[list(op.nodes[-1].output).index(gradient)] = "gradient"
    return op.model([tensor_info("gradient", TensorProto.FLOAT, ["N", 3, 224, 224])])


def input_gradient(settings: Settings) -> Rows:
    for name, target in TARGETS.items():
        model = NETWORKS[name]()
        try:
            explained = session(with_input_gradient(model).SerializeToString(), settings)
        except OnnxCamError as error:
            yield Row("input_gradient", name, note=f"not explained: {error.message}")
            continue
        plain = session(model.SerializeToString(), settings)
        for batch in (1,) if settings.quick else (1, 16):
            x = pictures(batch)
            yield ratio_row(
                "input_gradient",
                f"{name}, batch {batch}",
                partial(explained.run, ["gradient"], {"image": x}),
                "plain run",
                partial(plain.run, None, {"image": x}),
                settings,
                target=target,
            )
