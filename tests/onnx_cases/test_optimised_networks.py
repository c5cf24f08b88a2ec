"""Whole networks as ONNX Runtime's optimiser saves them: the gradient at the input is that of the original file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from onnxcam.autodiff import differentiate
from onnxcam.errors import UnsupportedOperatorError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from onnxcam.graph.load import load
from onnxcam.graph.read import read
from support.vjp import session

ort = pytest.importorskip("onnxruntime")

NETWORKS = sorted((Path(__file__).parents[1] / "parity" / "goldens").glob("*.onnx"))
NETWORKS = [path for path in NETWORKS if ".legacy.13." in path.name or ".dynamo.18." in path.name]


def saved(source: Path, level: str, path: Path) -> Path:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return path


def picture(shape: tuple[int | str | None, ...]) -> np.ndarray:
    sizes = [d if isinstance(d, int) else 2 for d in shape]
    return np.random.default_rng(6).normal(size=sizes).astype(np.float32)


def loaded(path: Path) -> Graph:
    def run(model: ModelProto) -> list[np.ndarray]:
        declared = model.graph.input[0]
        shape = tuple(d.dim_value or 2 for d in declared.type.tensor_type.shape.dim)
        return list(session(model).run(None, {declared.name: picture(shape)}))

    return load(read(path), run=run)


def gradient(path: Path) -> np.ndarray:
    graph = loaded(path)
    (x,), y = graph.inputs, graph.outputs[0]
    op = Builder(graph)
    (name,) = differentiate(graph, op, y, [x], cotangent="seed").values()
    seed = tensor_info("seed", TensorProto.FLOAT, [None] * len(graph.shape(y) or ()))
    explained = session(op.model([tensor_info(str(name), TensorProto.FLOAT, None)], [seed]))
    given = picture(graph.shape(x) or ())
    (scores,) = session(graph.complete(graph.model)).run([y], {x: given})
    cotangent = np.random.default_rng(7).normal(size=scores.shape).astype(np.float32)
    return np.asarray(explained.run([name], {x: given, "seed": cotangent})[0])


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
@pytest.mark.parametrize("path", NETWORKS, ids=lambda p: p.stem)
def test_optimised_network_has_the_original_s_gradient(path: Path, level: str, tmp_path: Path) -> None:
    expected = gradient(path)
    found = gradient(saved(path, level, tmp_path / "saved.onnx"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_optimiser_fused_what_the_rules_are_for(tmp_path: Path) -> None:
    kinds = {
        n.op_type
        for i, p in enumerate(NETWORKS)
        for n in onnx.load(saved(p, "EXTENDED", tmp_path / f"{i}.onnx")).graph.node
    }
    fused = {"FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "BiasGelu", "QuickGelu", "LayerNormalization"}
    assert kinds >= fused | {"SkipLayerNormalization", "SimplifiedLayerNormalization"}


def test_a_layout_for_one_machine_is_refused_with_the_level_to_save_at(tmp_path: Path) -> None:
    path = next(p for p in NETWORKS if p.name.startswith("plain"))
    file = saved(path, "ALL", tmp_path / "saved.onnx")
    if not any(n.domain == "com.microsoft.nchwc" for n in onnx.load(file).graph.node):
        pytest.skip("ONNX Runtime has no layout of its own for this machine")
    with pytest.raises(UnsupportedOperatorError, match="save the model at level EXTENDED"):
        gradient(file)
