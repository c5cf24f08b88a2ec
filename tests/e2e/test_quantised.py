"""Quantised models: gradients against a float twin that is linear where the model rounds; real pairs, int8 and float.

The networks here are quantised by ONNX Runtime's own quantiser, the real ones by TensorFlow Lite.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxcam import Explainer
from onnxcam.autodiff import differentiate
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from onnxcam.runtime import Session

sys.path.insert(0, str(Path(__file__).parents[2]))  # makes `benchmarks` importable

from benchmarks.quantised import PAIRS, Pair, correlations
from benchmarks.real import QUANTISED, SHARED, Model, explainer, shots

needs_shared = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no ../shared/models")


class Calibration(CalibrationDataReader):
    """Pictures whose range is half as wide as those that are explained, so that activations saturate."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.batches = iter([{"x": rng.normal(size=(1, 3, 10, 10)).astype(np.float32) / 2} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@cache
def network() -> ModelProto:
    """Conv, Relu, MaxPool, depthwise Conv, Clip, a residual sum, Sigmoid, pooling, Gemm: float, seeded."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]> g (float[1,3,10,10] x) => (float[1,5] y)
        <float zero = {0}, float six = {2.5}>
        { c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
          c2 = Conv<pads=[1,1,1,1], group=6>(p1, w2, b2) r2 = Clip(c2, zero, six) c3 = Conv(r2, w3, b3) a3 = Add(c3, p1)
          r3 = Relu(a3) c4 = Conv(r3, w4, b4) s4 = Sigmoid(c4) m4 = Mul(s4, r3) p = GlobalAveragePool(m4) f = Flatten(p)
          y = Gemm<transB=1>(f, w5, b5) }""")
    rng = np.random.default_rng(2)
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 1, 3, 3), "w3": (6, 6, 1, 1), "w4": (6, 6, 1, 1), "w5": (5, 6)}
    for name, shape in shapes.items():
        weight, bias = rng.normal(size=shape) * 1.5 / np.sqrt(np.prod(shape[1:])), 0.1 * rng.normal(size=shape[0])
        for n, array in ((name, weight), (name.replace("w", "b"), bias)):
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), n))
    return model


def quantised(folder: Path, activations: QuantType, per_channel: bool) -> ModelProto:
    onnx.save(network(), folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "qdq.onnx", Calibration(), QuantFormat.QDQ, per_channel=per_channel,
                    activation_type=activations, weight_type=QuantType.QInt8)  # fmt: skip
    return onnx.load(folder / "qdq.onnx")


def straight_through(model: ModelProto, x: np.ndarray) -> ModelProto:
    """The model in float64 with each quantisation of an activation replaced by the line through its point at `x`.

    q(v) becomes v + (q(v0) - v0) where v0 = v(x) is in range and the constant q(v0) where it is clipped: at `x`
    every value is the quantised model's, and what is left to differentiate is an ordinary function, free of onnxcam.
    """
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    values: dict[str, np.ndarray] = {"x": x.astype(np.float64)}
    nodes, weights = [], {}
    clipped = 0
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            q, scale, zero = (constants[i].astype(np.float64) for i in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            column = [-1 if a == axis and scale.size > 1 else 1 for a in range(q.ndim)]
            values[node.output[0]] = weights[node.output[0]] = (q - zero.reshape(column)) * scale.reshape(column)
        elif node.op_type == "QuantizeLinear":
            v, (scale, zero) = values[node.input[0]], (constants[i] for i in node.input[1:])
            limits = np.iinfo(zero.dtype)
            level = np.rint(v / float(scale)) + int(zero)
            inside = (level >= limits.min) & (level <= limits.max)
            clipped += int((~inside).sum())
            values[node.output[0]] = (np.clip(level, limits.min, limits.max) - int(zero)) * float(scale)
            keep, rest = f"{node.output[0]}/keep", f"{node.output[0]}/rest"
            weights[keep] = inside.astype(np.float64)
            weights[rest] = values[node.output[0]] - v * inside
            nodes += [helper.make_node("Mul", [node.input[0], keep], [f"{keep}t"]),
                      helper.make_node("Add", [f"{keep}t", rest], [node.output[0]])]  # fmt: skip
        elif node.op_type == "DequantizeLinear":
            values[node.output[0]] = values[node.input[0]]
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
        else:
            for i in node.input:
                if i in constants:
                    weights[i] = constants[i].astype(np.float64 if constants[i].dtype.kind == "f" else np.int64)
            given = {i: values[i] if i in values else weights[i] for i in node.input}
            inputs = [helper.make_tensor_value_info(i, TensorProto.DOUBLE, None) for i in given]
            alone = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=node.output[0])])
            one = helper.make_model(alone, opset_imports=[helper.make_opsetid("", 18)])
            values[node.output[0]] = ReferenceEvaluator(one).run(None, given)[0]
            nodes.append(node)
    assert clipped > 0, "nothing saturates: the mask is not tested"
    twin = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 5])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(twin, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
def test_the_gradient_of_a_qdq_model_is_that_of_its_straight_through_float_twin(
    activations: QuantType, per_channel: bool, tmp_path: Path
) -> None:
    model = quantised(tmp_path, activations, per_channel)
    x = np.random.default_rng(3).normal(size=(1, 3, 10, 10)).astype(np.float32)
    u = np.random.default_rng(4).normal(size=(1, 5)).astype(np.float32)
    graph = Graph(model)
    op = Builder(graph)
    gradient = str(differentiate(graph, op, "y", ["x"], cotangent=op.floats(u))["x"])
    runtime = Session(op.model([tensor_info(gradient, TensorProto.FLOAT, None)]), threads=1)
    found = runtime.run({"x": x}, ["y", gradient])
    twin = ReferenceEvaluator(straight_through(model, x))
    np.testing.assert_allclose(twin.run(None, {"x": x.astype(float)})[0], found["y"], atol=1e-5)
    rng = np.random.default_rng(5)
    for _ in range(5):
        v, h = rng.normal(size=x.shape), 1e-7
        ahead, behind = (twin.run(None, {"x": x + s * v})[0] for s in (h, -h))
        expected = (u * (ahead - behind)).sum() / (2 * h)
        assert abs((found[gradient] * v).sum() - expected) <= 1e-4 * np.abs(found[gradient] * v).sum()


@needs_shared
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.quantised)
def test_int8_and_float_maps_of_one_network_correlate_on_every_picture(pair: Pair) -> None:
    """Measured: at least 0.976 over the cells, 0.980 over the pixels."""
    for picture, raw, values in correlations(pair):
        assert raw >= 0.95 and values >= 0.95, picture


QUANTS = [pytest.param(m, id=m.file.removesuffix(".onnx")) for m in QUANTISED]


def plain(model: Path, folder: Path | None = None) -> ort.InferenceSession:
    """The model by itself; with `folder`, as optimised to operators on integers and saved there."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 2
    if folder is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(folder / "optimised.onnx")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@needs_shared
@pytest.mark.parametrize("model", QUANTS)
def test_the_prediction_is_the_untouched_models_and_no_map_is_empty(model: Model) -> None:
    """Logits at the end of their 8-bit range are explained by their real values; 8-bit ties go to the first class."""
    explained, runtime = explainer(model), plain(SHARED / "models" / model.file)
    name = runtime.get_inputs()[0].name
    for shot in shots(model.shots):
        found, tensor = explained(shot.picture), explained.preprocess(shot.picture)[0]
        assert found.class_index == runtime.run(None, {name: tensor})[0].argmax(), shot.name
        assert not found.is_empty, shot.name


@needs_shared
@pytest.mark.parametrize("model", QUANTS)
def test_operators_on_integers_are_explained_like_the_pairs_that_they_were_fused_from(
    model: Model, tmp_path: Path
) -> None:
    """QLinearConv, QLinearAdd, QGemm, QLinearSoftmax as ONNX Runtime writes them; same class, last layer of each."""
    plain(SHARED / "models" / model.file, tmp_path)
    pairs, fused = explainer(model), Explainer(tmp_path / "optimised.onnx", preprocess=model.preprocess, threads=2)
    for shot in shots(model.shots)[:6]:
        a = pairs(shot.picture)
        (b,) = fused.explain_tensor(pairs.preprocess(shot.picture)[0], a.class_index)
        assert np.corrcoef(a.raw.ravel(), b.raw.ravel())[0, 1] >= 0.99, shot.name
