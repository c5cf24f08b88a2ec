"""An exported file answers as the model does and returns the map that Python returns."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxcam
from onnxcam import Explainer, cli, demo, exported
from onnxcam.errors import OutputError, UnsupportedError, UsageError, VerificationError
from onnxcam.exported import MAX_CLASSES, METADATA_KEY, export
from onnxcam.targets import Element

DEMO = demo.FOLDER / "demo.onnx"
SHARED = Path(__file__).parents[3] / "shared" / "models"


def session(model: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: Path, **feeds: Any) -> dict[str, Any]:
    made = session(model)
    return dict(zip([o.name for o in made.get_outputs()], made.run(None, feeds), strict=True))


def pictures(count: int, size: int = 128) -> Any:
    return np.random.default_rng(5).normal(size=(count, 3, size, size)).astype(np.float32)


def toy(classes: int = 4, **names: str) -> ModelProto:
    """Conv, Relu, global average pooling, one linear layer; batch, height and width open."""
    n = {"x": "x", "scores": "scores", "w": "w", "m": "m"} | names
    rng = np.random.default_rng(1)
    weights = {n["w"]: rng.normal(size=(5, 3, 3, 3)), n["m"]: rng.normal(size=(5, classes))}
    nodes = [
        helper.make_node("Conv", [n["x"], n["w"]], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", n["m"]], [n["scores"]]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(n["x"], TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info(n["scores"], TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def toy_file(tmp_path: Path) -> Path:
    onnx.save(toy(), tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


def values_of(model: Any, x: Any, target: Any, **options: Any) -> Any:
    return np.stack([e.values for e in Explainer(model, threads=1, **options).explain_tensor(x, target)])


def added_nodes(source: ModelProto, file: ModelProto) -> list[onnx.NodeProto]:
    own = {o for n in source.graph.node for o in n.output}
    return [n for n in file.graph.node if not own & set(n.output)]


# --- the claim --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("asked", [-1, 2])
def test_the_demo_model_answers_as_before_and_returns_pythons_map(tmp_path: Path, batch: int, asked: int) -> None:
    export(DEMO, tmp_path / "m.onnx", threads=1)
    x = pictures(batch)
    got = run(tmp_path / "m.onnx", image=x, class_index=np.array([asked]))
    assert np.array_equal(got["probabilities"], run(DEMO, image=x)["probabilities"])
    assert got["heatmap"].shape == (batch, 128, 128) and got["heatmap"].dtype == np.float32
    np.testing.assert_allclose(got["heatmap"], values_of(DEMO, x, asked), atol=1e-5)


def test_every_sample_has_a_class_of_its_own(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "m.onnx", threads=1)
    x = pictures(3)
    got = run(tmp_path / "m.onnx", image=x, class_index=np.array([4, -1, 0]))["heatmap"]
    np.testing.assert_allclose(got, values_of(DEMO, x, [4, -1, 0]), atol=1e-5)
    assert np.abs(got[0] - values_of(DEMO, x, -1)[0]).max() > 0.1


def test_the_map_is_the_closed_form(toy_file: Path, tmp_path: Path) -> None:
    """alpha_k = W[k, c] / (h w); the resize by NumPy's own interpolation, rows and columns apart."""
    export(toy_file, tmp_path / "m.onnx", size=(32, 48), with_raw=True, threads=1)
    x = np.random.default_rng(2).normal(size=(2, 3, 32, 48)).astype(np.float32)
    model = toy()
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "open.onnx")
    a = run(tmp_path / "open.onnx", x=x)["a"].astype(np.float64)
    weights = numpy_helper.to_array(model.graph.initializer[1])[:, 1]
    raw = np.einsum("k,nkhw->nhw", weights, a) / (16 * 24)
    got = run(tmp_path / "m.onnx", x=x, class_index=np.array([1]))
    np.testing.assert_allclose(got["heatmap_raw"], raw, atol=1e-6)

    def scaled(m: Any) -> Any:
        return (m - m.min()) / (1e-7 + m.max() - m.min())

    for sample, found in zip(raw, got["heatmap"], strict=True):
        small = scaled(np.maximum(sample, 0))
        rows, columns = (np.arange(2 * n) / 2 - 0.25 for n in (16, 24))
        wide = np.stack([np.interp(columns, np.arange(24), row) for row in small])
        whole = np.stack([np.interp(rows, np.arange(16), column) for column in wide.T], 1)
        np.testing.assert_allclose(found, scaled(whole), atol=2e-6)


def headed(*head: onnx.NodeProto, **weights: Any) -> ModelProto:
    """The toy model with other nodes behind the pooling, which makes `p` (N, 5, 1, 1)."""
    model = toy()
    del model.graph.node[3:], model.graph.initializer[1:]
    model.graph.node.extend(head)
    model.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    return model


DRAWN = np.random.default_rng(4)
LEVELS = DRAWN.integers(-127, 128, (4, 5)).astype(np.int8)
STEPS = DRAWN.uniform(0.01, 0.02, 5).astype(np.float32)
POINTS = DRAWN.integers(-3, 4, 5).astype(np.int8)


def quantised(levels: Any, scale: Any, zero: Any, axis: int, gemm: bool) -> ModelProto:
    product = (
        helper.make_node("Gemm", ["f", "w8"], ["scores"], transB=1) if gemm
        else helper.make_node("MatMul", ["f", "w8"], ["scores"])
    )  # fmt: skip
    return headed(
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w8"], axis=axis),
        helper.make_node("Flatten", ["p"], ["f"]),
        product, q=levels, s=np.asarray(scale), z=np.asarray(zero),
    )  # fmt: skip


HEADS = {
    "1x1 convolution": (
        lambda: headed(
            helper.make_node("Conv", ["p", "v", "b"], ["l"]), helper.make_node("Flatten", ["l"], ["scores"]),
            v=LEVELS[:, :, None, None].astype(np.float32), b=np.ones(4, np.float32),
        ),
        LEVELS.astype(float),
    ),
    "int8": (lambda: quantised(LEVELS, STEPS[0], POINTS[0], 0, True), (LEVELS - float(POINTS[0])) * STEPS[0]),
    "int8 by class": (
        lambda: quantised(LEVELS, STEPS[:4], POINTS[:4], 0, True),
        (LEVELS - POINTS[:4, None].astype(float)) * STEPS[:4, None],
    ),
    "int8 by feature": (
        lambda: quantised(LEVELS, STEPS, POINTS, -1, True), (LEVELS - POINTS.astype(float)) * STEPS
    ),
    "int8 transposed, by class": (
        lambda: quantised(LEVELS.T.copy(), STEPS[:4], POINTS[:4], 1, False),
        (LEVELS - POINTS[:4, None].astype(float)) * STEPS[:4, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_of_a_heads_weights_the_classs_row_alone_is_read(tmp_path: Path, head: str) -> None:
    """alpha_k = W[c, k] / (h w), of every sample's own class; without it the whole matrix is dequantised per run."""
    make, weights = HEADS[head]
    onnx.save(make(), tmp_path / "toy.onnx")
    export(tmp_path / "toy.onnx", tmp_path / "m.onnx", size=(16, 16), with_raw=True, threads=1)
    x = np.random.default_rng(2).normal(size=(3, 3, 16, 16)).astype(np.float32)
    model = make()
    model.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "open.onnx")
    a, classes = run(tmp_path / "open.onnx", x=x)["a"].astype(np.float64), np.array([3, 0, 2])
    got = run(tmp_path / "m.onnx", x=x, class_index=classes)
    expected = np.einsum("nk,nkhw->nhw", weights[classes], a) / 64
    np.testing.assert_allclose(got["heatmap_raw"], expected, atol=1e-5 * np.abs(expected).max())
    added = added_nodes(model, onnx.load(tmp_path / "m.onnx"))
    assert not {n.op_type for n in added} & {"ConvTranspose", "Conv", "Gemm", "OneHot"}
    assert all(n.input[0] != "q" for n in added if n.op_type == "DequantizeLinear")


@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
def test_open_height_and_width_stay_open(toy_file: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    export(toy_file, tmp_path / "m.onnx", threads=1)
    x = np.random.default_rng(2).normal(size=(2, 3, *size)).astype(np.float32)
    got = run(tmp_path / "m.onnx", x=x, class_index=np.array([3]))
    assert np.array_equal(got["scores"], run(toy_file, x=x)["scores"])
    np.testing.assert_allclose(got["heatmap"], values_of(toy_file, x, 3, size=size), atol=1e-5)


CLASSIFIERS = [
    "fas_minifasnet_v1se",
    "fer_mini_xception",
    "mlperf_resnet8_large_int8_qdq",
    "mlperf_resnet8_nhwc",
    "mnist_cntk8",
    "mobilenet_v1_025_128_fp32_nhwc",
    "mobilenet_v1_025_128_qdq_nhwc",
    "mobilenet_v1_05_160_fp32_nchw",
    "mobilenet_v2_tf_qdq_nhwc",
    "mobilenet_v2_torch_fp32_nchw",
    "mobilenet_v2_torch_qdq_int8io_nchw",
    "resnet20_cifar10",
    "squeezenet1_1_fp16_winml",
    "squeezenet1_1_gluon_fp32",
    "tiny_darknet_fp32",
    "vww96_mlperf_fp32_nhwc",
    "vww96_mlperf_int8_qdq",
]
# A quantised model is fused less where a value is read: see docs/conformance.
LOOSE = {"mobilenet_v1_025_128_qdq_nhwc": 0.09}


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/models")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_trained_classifiers_answer_as_before_and_return_pythons_map(tmp_path: Path, name: str) -> None:
    source, file = SHARED / f"{name}.onnx", tmp_path / "m.onnx"
    done = export(source, file, threads=2)
    assert done.check is not None and done.check.heatmap < 1e-5
    made = session(source)
    picture = made.get_inputs()[0]
    shape = [d if isinstance(d, int) else 3 for d in picture.shape]
    kind = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}
    drawn = np.random.default_rng(9).uniform(0, 1, shape)
    integer = picture.type.endswith("int8)")
    x = (drawn * 127 if integer else drawn).astype(kind[picture.type])
    for count in {1, len(x)}:
        feeds = {picture.name: x[:count]}
        plain = dict(zip([o.name for o in made.get_outputs()], made.run(None, feeds), strict=True))
        for asked in (-1, 1):
            got = run(file, **feeds, class_index=np.array([asked]))
            np.testing.assert_allclose(got["heatmap"], values_of(source, x[:count], asked), atol=1e-5)
            for output, expected in plain.items():
                if name not in LOOSE:
                    assert np.array_equal(got[output], expected)
                scale = np.abs(expected.astype(np.float64)).max()
                assert np.abs(got[output].astype(np.float64) - expected).max() <= LOOSE.get(name, 0) * scale
                rows, mine = expected.reshape(count, -1), got[output].reshape(count, -1)
                assert (rows[np.arange(count), mine.argmax(1)] == rows.max(1)).all()


# --- what the file looks like -----------------------------------------------------------------------------------


def test_the_models_own_inputs_and_outputs_stay_and_come_first(tmp_path: Path) -> None:
    done = export(DEMO, tmp_path / "m.onnx", with_class=True, with_raw=True, threads=1)
    source, file = onnx.load(DEMO), onnx.load(tmp_path / "m.onnx")
    assert [i.SerializeToString() for i in file.graph.input][:-1] == [i.SerializeToString() for i in source.graph.input]
    own = len(source.graph.output)
    assert [o.SerializeToString() for o in file.graph.output][:own] == [
        o.SerializeToString() for o in source.graph.output
    ]
    assert done.inputs[-1] == "class_index"
    assert done.outputs[own:] == ("heatmap", "heatmap_class", "heatmap_raw")
    assert [p for p in file.metadata_props if p.key != METADATA_KEY] == list(source.metadata_props)
    whole = {t.name: t for t in file.graph.initializer}
    assert all(whole[t.name] == t for t in source.graph.initializer)


@pytest.mark.parametrize(
    "options",
    [{}, {"overlay": True}, {"top": 2}, {"method": "gradcam++"}, {"method": "guidedgradcam"}, {"normalize": "max"}],
    ids=str,
)
def test_what_is_added_are_operators_of_the_standard_and_the_file_is_valid(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    export(DEMO, tmp_path / "m.onnx", threads=1, **options)
    file, source = onnx.load(tmp_path / "m.onnx"), onnx.load(DEMO)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert {n.domain for n in added_nodes(source, file)} == {""}
    assert not any(a.HasField("g") for n in added_nodes(source, file) for a in n.attribute)
    assert file.ir_version == max(8, source.ir_version)
    assert {o.domain: o.version for o in file.opset_import}[""] == max(18, source.opset_import[0].version)


@pytest.mark.parametrize(("opset", "ir"), [(13, 7), (18, 8), (21, 10)])
def test_the_opset_and_the_ir_are_the_models_or_18_and_8(tmp_path: Path, opset: int, ir: int) -> None:
    model = toy()
    model.opset_import[0].version, model.ir_version = opset, ir
    onnx.save(model, tmp_path / "toy.onnx")
    done = export(tmp_path / "toy.onnx", tmp_path / "m.onnx", size=(16, 16), threads=1)
    file = onnx.load(tmp_path / "m.onnx")
    assert {o.domain: o.version for o in file.opset_import}[""] == max(18, opset) == done.opset
    assert file.ir_version == max(8, ir)
    assert done.onnxruntime == {18: "1.14", 21: "1.18"}[done.opset]


def test_operators_that_only_some_runtimes_have_are_said(tmp_path: Path) -> None:
    model = toy()
    model.graph.node[1].CopyFrom(helper.make_node("Gelu", ["c"], ["a"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "toy.onnx")
    done = export(tmp_path / "toy.onnx", tmp_path / "m.onnx", size=(16, 16), threads=1)
    assert any("operators of com.microsoft" in note for note in done.notes)
    assert {n.domain for n in added_nodes(model, onnx.load(tmp_path / "m.onnx"))} == {""}
    assert not any("operators of" in note for note in export(DEMO, tmp_path / "d.onnx", verify=False).notes)


def test_every_added_node_and_constant_is_needed(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "m.onnx", threads=1)
    file, source = onnx.load(tmp_path / "m.onnx"), onnx.load(DEMO)
    read = {i for n in file.graph.node for i in n.input} | {o.name for o in file.graph.output}
    assert all(set(n.output) & read for n in added_nodes(source, file))
    assert {t.name for t in file.graph.initializer} <= read


def test_the_file_grows_by_a_hundredth_and_20_kb_at_most(tmp_path: Path) -> None:
    done = export(DEMO, tmp_path / "m.onnx", threads=1)
    before = DEMO.stat().st_size
    assert done.added_bytes == (tmp_path / "m.onnx").stat().st_size - before
    assert done.added_bytes <= 0.01 * before + 20_000


def test_the_work_told_is_the_models_own_and_what_the_map_takes(toy_file: Path, tmp_path: Path) -> None:
    """A 3 x 3 convolution of stride 2 to 5 channels on 8 x 8 cells, ReLU, pooling, 5 x 4 weights; pictures 16 x 16."""
    done = export(toy_file, tmp_path / "m.onnx", size=(16, 16), class_input="none", target=1, threads=1)
    own = 64 * 5 * 27 + 64 * 5 + 64 * 5 + 5 * 4
    assert done.multiply_adds - done.added_multiply_adds == own
    total = 5 * 64  # the sum over channels
    enlarging = 16 * 8 * 8 + 16 * 16 * 8
    corners = 16 * 8 * 8 + 16 * 16 * 8  # at twice the size every line of pixels may hold an extreme
    assert total + enlarging + corners < done.added_multiply_adds < total + enlarging + corners + 1500


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    code = "import sys; from onnxcam import export; export(sys.argv[1], sys.argv[2], method='gradcam++', verify=False)"
    for seed in ("1", "2"):
        call = [sys.executable, "-c", code, str(DEMO), str(tmp_path / f"{seed}.onnx")]
        subprocess.run(call, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=120)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_the_metadata_say_what_was_done(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "m.onnx", method="layercam", class_input="required", threads=1)
    (text,) = (p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props if p.key == METADATA_KEY)
    record = json.loads(text)
    import hashlib

    assert record["source"] == {"name": "demo.onnx", "sha256": hashlib.sha256(DEMO.read_bytes()).hexdigest()}
    assert (record["method"], record["class_input"], record["score"]) == ("layercam", "required", "logit")
    assert record["layers"][0]["name"] == Explainer(DEMO, threads=1).layer
    assert record["versions"] == {"onnxcam": onnxcam.__version__, "onnx": onnx.__version__}
    assert str(tmp_path) not in text


def test_names_that_the_model_has_get_a_prefix_and_that_is_said(tmp_path: Path) -> None:
    onnx.save(toy(x="class_index", scores="heatmap", w="overlay", m="picture"), tmp_path / "toy.onnx")
    done = export(tmp_path / "toy.onnx", tmp_path / "m.onnx", size=(16, 16), threads=1)
    assert done.inputs == ("class_index", "onnxcam_class_index") and done.outputs == ("heatmap", "onnxcam_heatmap")
    assert sum("already" in note for note in done.notes) == 2
    x = np.random.default_rng(2).normal(size=(1, 3, 16, 16)).astype(np.float32)
    got = run(tmp_path / "m.onnx", class_index=x, onnxcam_class_index=np.array([2]))
    np.testing.assert_allclose(got["onnxcam_heatmap"], values_of(tmp_path / "toy.onnx", x, 2, size=(16, 16)), atol=1e-5)


# --- which class ------------------------------------------------------------------------------------------------


def test_an_optional_class_input_has_a_default_and_a_required_one_has_none(tmp_path: Path) -> None:
    x = pictures(1)
    for kind in ("optional", "required", "none"):
        export(DEMO, tmp_path / f"{kind}.onnx", class_input=kind, threads=1)
    maps = {
        "optional": run(tmp_path / "optional.onnx", image=x)["heatmap"],
        "required": run(tmp_path / "required.onnx", image=x, class_index=np.array([-1]))["heatmap"],
        "none": run(tmp_path / "none.onnx", image=x)["heatmap"],
    }
    for found in maps.values():
        np.testing.assert_allclose(found, values_of(DEMO, x, None), atol=1e-5)
    with pytest.raises(ValueError, match="class_index"):
        run(tmp_path / "required.onnx", image=x)
    assert [i.name for i in onnx.load(tmp_path / "none.onnx").graph.input] == ["image"]


def test_fixed_classes_make_maps_of_these(tmp_path: Path) -> None:
    x = pictures(2)
    expected = np.stack([values_of(DEMO, x, c) for c in range(10)], 1)
    export(DEMO, tmp_path / "one.onnx", target=3, with_class=True, threads=1)
    one = run(tmp_path / "one.onnx", image=x)
    np.testing.assert_allclose(one["heatmap"], expected[:, 3], atol=1e-5)
    assert one["heatmap_class"].tolist() == [3, 3]
    export(DEMO, tmp_path / "two.onnx", target=[7, "arrow"], threads=1)
    np.testing.assert_allclose(run(tmp_path / "two.onnx", image=x)["heatmap"], expected[:, [7, 0]], atol=1e-5)
    export(DEMO, tmp_path / "all.onnx", all_classes=True, threads=1)
    np.testing.assert_allclose(run(tmp_path / "all.onnx", image=x)["heatmap"], expected, atol=1e-5)
    export(DEMO, tmp_path / "top.onnx", top=3, threads=1)
    top = run(tmp_path / "top.onnx", image=x)
    best = np.argsort(-top["probabilities"], axis=1, kind="stable")[:, :3]
    assert top["heatmap_class"].tolist() == best.tolist()
    np.testing.assert_allclose(top["heatmap"], np.stack([expected[i, best[i]] for i in range(2)]), atol=1e-5)


def ending_in(*ends: NodeProto, dtype: int = TensorProto.FLOAT) -> ModelProto:
    """The toy with more operators, of which the last makes `end`."""
    model = toy()
    model.graph.node.extend(ends)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("end", dtype, ["batch", 4]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.uint8), "zero"))
    return model


SOFTMAX = helper.make_node("Softmax", ["scores"], ["s"], axis=1)
ENDS = {
    "logits": (helper.make_node("Identity", ["scores"], ["end"]),),
    "Softmax": (helper.make_node("Softmax", ["scores"], ["end"], axis=1),),
    "LogSoftmax": (helper.make_node("LogSoftmax", ["scores"], ["end"], axis=1),),
    "integers": (SOFTMAX, helper.make_node("QuantizeLinear", ["s", "scale", "zero"], ["end"])),
}


@pytest.mark.parametrize("end", ENDS)
def test_class_scores_are_probabilities_before_they_are_quantised_or_logits(tmp_path: Path, end: str) -> None:
    model = ending_in(*ENDS[end], dtype=TensorProto.UINT8 if end == "integers" else TensorProto.FLOAT)
    onnx.save(model, tmp_path / "toy.onnx")
    done = export(tmp_path / "toy.onnx", tmp_path / "m.onnx", size=(16, 16), with_scores=True, threads=1)
    assert done.outputs == ("end", "heatmap", "class_scores")
    x = pictures(3, 16)
    got, logits = (
        run(tmp_path / "m.onnx", x=x),
        session(toy().SerializeToString()).run(None, {"x": x})[0].astype(np.float64),
    )
    powers = np.exp(logits - logits.max(1, keepdims=True))
    expected = logits if end == "logits" else powers / powers.sum(1, keepdims=True)
    assert got["class_scores"].dtype == np.float32
    np.testing.assert_allclose(got["class_scores"], expected, rtol=1e-5, atol=1e-6)


def test_of_what_is_no_class_there_are_no_class_scores(tmp_path: Path) -> None:
    onnx.save(toy(), tmp_path / "toy.onnx")
    for option in ("with_scores", "with_class"):
        with pytest.raises(UsageError, match="what is explained is no class"):
            export(tmp_path / "toy.onnx", tmp_path / "m.onnx", target=Element("scores[0]"), **{option: True})
    assert not (tmp_path / "m.onnx").exists()


def test_a_map_without_a_class_has_no_class_input(tmp_path: Path) -> None:
    done = export(DEMO, tmp_path / "m.onnx", method="fem", threads=1)
    assert done.inputs == ("image",) and any("every class" in note for note in done.notes)
    x = pictures(2)
    np.testing.assert_allclose(
        run(tmp_path / "m.onnx", image=x)["heatmap"], values_of(DEMO, x, None, method="fem"), atol=1e-5
    )


# --- options ----------------------------------------------------------------------------------------------------

METHODS = """saliency inputxgradient guidedbackprop deconvnet guidedgradcam fullgrad gradcam hirescam gradcamelementwise
gradcam++ xgradcam layercam shapleycam fem activationmap cam""".split()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_in_the_graph_makes_pythons_map(tmp_path: Path, method: str) -> None:
    export(DEMO, tmp_path / "m.onnx", method=method, target=6, threads=1)
    x = pictures(1)
    np.testing.assert_allclose(
        run(tmp_path / "m.onnx", image=x)["heatmap"], values_of(DEMO, x, 6, method=method), atol=1e-5
    )


@pytest.mark.parametrize("normalize", ["minmax", "max", "none"])
@pytest.mark.parametrize("fuse", ["mean", "product", "max"])
def test_layers_are_fused_and_maps_normalised_as_in_python(tmp_path: Path, fuse: str, normalize: str) -> None:
    explainer = Explainer(DEMO, threads=1)
    layers = [explainer.layer, "/0/features/features.6/Add_output_0"]
    options = {"layer": layers, "fuse": fuse, "normalize": normalize}
    export(DEMO, tmp_path / "m.onnx", target=1, threads=1, **options)
    x = pictures(1)
    expected = values_of(DEMO, x, 1, **options)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", image=x)["heatmap"], expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_a_map_without_positive_values_is_zero(tmp_path: Path, normalize: str) -> None:
    model = toy()
    weights = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weights[:, 2] = -1
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "m"))
    onnx.save(model, tmp_path / "toy.onnx")
    export(tmp_path / "toy.onnx", tmp_path / "m.onnx", target=2, size=(16, 16), normalize=normalize, threads=1)
    x = np.random.default_rng(2).normal(size=(1, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(run(tmp_path / "m.onnx", x=x)["heatmap"], np.zeros((1, 16, 16), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_seen_in_the_whole_map_as_in_pythons(
    toy_file: Path, tmp_path: Path, bad: float
) -> None:
    export(toy_file, tmp_path / "m.onnx", size=(32, 32), threads=1)
    x = np.random.default_rng(2).normal(size=(2, 3, 32, 32)).astype(np.float32)
    x[0, 0, 5, 5] = bad
    got = run(tmp_path / "m.onnx", x=x, class_index=np.array([1]))["heatmap"]
    assert np.isnan(got[0]).all() and np.isnan(values_of(toy_file, x, 1, size=(32, 32))[0]).all()
    assert np.isfinite(got[1]).all()


def test_the_map_has_the_size_asked_for(toy_file: Path, tmp_path: Path) -> None:
    """A map of (20, 30) from a grid of 16 x 16 is ONNX's own Resize of the raw map."""
    export(toy_file, tmp_path / "m.onnx", size=(32, 32), map_size=(20, 30), normalize="none", with_raw=True, threads=1)
    x = np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)
    got = run(tmp_path / "m.onnx", x=x)
    node = helper.make_node("Resize", ["m", "", "", "s"], ["y"], mode="linear")
    small = np.maximum(got["heatmap_raw"], 0)[:, None]
    (expected,) = onnx.reference.ReferenceEvaluator(node).run(None, {"m": small, "s": np.array([1, 1, 20, 30])})
    np.testing.assert_allclose(got["heatmap"], expected[:, 0], atol=1e-6)


def test_pictures_go_in_and_overlays_come_out(tmp_path: Path) -> None:
    """Against the Python path on the same pixels; blending is rounded in another order, by 1 of 255 at most."""
    export(DEMO, tmp_path / "m.onnx", overlay=True, opacity=0.4, colormap="viridis", threads=1)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    got = run(tmp_path / "m.onnx", picture=pixels)
    explainer = Explainer(DEMO, preprocess={"fit": "squash"}, threads=1)
    for i, picture in enumerate(pixels):
        explanation = explainer(picture)
        np.testing.assert_allclose(got["heatmap"][i], explanation.values, atol=1e-4)
        np.testing.assert_allclose(
            got["probabilities"][i], run(DEMO, image=explainer.preprocess(onnxcam.load_picture(picture))[0])
            ["probabilities"][0], atol=1e-5,
        )  # fmt: skip
        drawn = np.asarray(explanation.overlay("viridis", 0.4)).astype(int)
        gap = np.abs(got["overlay"][i].astype(int) - drawn)
        assert (gap > 1).mean() < 1e-3  # a value at the edge of two of the 256 colours may fall on either side
        assert gap.max() <= 4


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
def test_the_default_colours_are_computed_and_near_those_of_pythons_table(tmp_path: Path, opacity: float) -> None:
    """Half of a 255th from a table entry `jet` has changed by 2; the rest is rounding."""
    export(DEMO, tmp_path / "m.onnx", overlay=True, opacity=opacity, threads=1)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    got = run(tmp_path / "m.onnx", picture=pixels)["overlay"]
    explainer = Explainer(DEMO, preprocess={"fit": "squash"}, threads=1)
    for drawn, picture in zip(got, pixels, strict=True):
        gap = np.abs(drawn.astype(int) - np.asarray(explainer(picture).overlay("jet", opacity)))
        assert gap.max() <= 2 * opacity + 1 and gap.mean() <= 0.6 * opacity + 1e-3


@pytest.mark.parametrize("method", ["saliency", "guidedbackprop"])
def test_the_overlay_of_a_pixel_map_is_clipped_as_pythons(tmp_path: Path, method: str) -> None:
    export(DEMO, tmp_path / "m.onnx", method=method, overlay=True, threads=1)
    pixels = np.random.default_rng(3).integers(0, 256, (1, 128, 128, 3)).astype(np.uint8)
    got = run(tmp_path / "m.onnx", picture=pixels)
    explanation = Explainer(DEMO, method=method, preprocess={"fit": "squash"}, threads=1)(pixels[0])
    np.testing.assert_allclose(got["heatmap"][0], explanation.values, atol=1e-3)
    gap = np.abs(got["overlay"][0].astype(int) - np.asarray(explanation.overlay()))
    assert (gap > 2).mean() < 2e-3  # a value at the edge of two colours may fall on either side
    assert (np.abs(got["overlay"][0].astype(int) - np.asarray(explanation.overlay(clip=100))) > 2).mean() > 0.1


PREPROCESS = [
    {"channels": "bgr", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    {"scale": 1.0, "mean": [0.0], "std": [1.0]},
]


@pytest.mark.parametrize("settings", PREPROCESS, ids=["bgr", "pixels"])
def test_baked_preprocessing_is_the_tensor_that_python_makes(tmp_path: Path, settings: dict[str, Any]) -> None:
    export(DEMO, tmp_path / "m.onnx", picture_input=True, preprocess=settings, threads=1)
    pixels = np.random.default_rng(3).integers(0, 256, (1, 128, 128, 3)).astype(np.uint8)
    explainer = Explainer(DEMO, preprocess={**settings, "fit": "squash"}, threads=1)
    tensor = explainer.preprocess(onnxcam.load_picture(pixels[0]))[0]
    got, plain = run(tmp_path / "m.onnx", picture=pixels), run(DEMO, image=tensor)
    np.testing.assert_allclose(got["probabilities"], plain["probabilities"], atol=1e-5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/models")
@pytest.mark.parametrize(
    ("name", "predictions", "heatmap"),
    [
        ("mnist_cntk8", 1e-5, 1e-4),
        ("mlperf_resnet8_nhwc", 1e-5, 1e-4),
        ("mobilenet_v2_torch_qdq_int8io_nchw", 1e-5, 1e-4),
        ("squeezenet1_1_fp16_winml", 1e-5, 1e-5),
    ],
)
def test_grey_channels_last_quantised_and_half_inputs_are_baked_too(
    tmp_path: Path, name: str, predictions: float, heatmap: float
) -> None:
    """`export` compares with Python's own preprocessing, and refuses what differs."""
    done = export(SHARED / f"{name}.onnx", tmp_path / "m.onnx", overlay=True, threads=1)
    assert done.check is not None and done.check.predictions < predictions and done.check.heatmap < heatmap


def test_external_weights_stay_in_their_file_and_are_copied_to_another_folder(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    onnx.save(onnx.load(DEMO), home / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    data = (home / "m.data").read_bytes()
    x = pictures(1)
    for folder in (home, away):
        done = export(home / "m.onnx", folder / "m.cam.onnx", threads=1)
        assert done.bytes < 60_000  # a graph, no weights
        assert (folder / "m.data").read_bytes() == data
        got = run(folder / "m.cam.onnx", image=x)
        np.testing.assert_allclose(got["heatmap"], values_of(DEMO, x, None), atol=1e-5)
    (away / "m.data").write_bytes(b"something else")
    with pytest.raises(OutputError, match=r"m\.data exists and is another file"):
        export(home / "m.onnx", away / "second.onnx", threads=1)
    assert not (away / "second.onnx").exists()


@pytest.mark.skipif("ONNXCAM_LARGE" not in os.environ, reason="5 GB on disk: set ONNXCAM_LARGE")
def test_more_than_two_gigabytes_of_weights(tmp_path: Path) -> None:
    """A hidden layer of 26,000 x 22,000 floats, 2.3 GB, in a file beside the model."""
    model, rng = toy(), np.random.default_rng(3)
    del model.graph.node[4:], model.graph.initializer[1:]
    sizes = {"w1": (5, 26_000), "w2": (26_000, 22_000), "w3": (22_000, 4)}
    values = ["f", "h", "i", "scores"]
    for (name, shape), read, made in zip(sizes.items(), values, values[1:], strict=False):
        weights = rng.random(shape, np.float32) - np.float32(0.5)
        model.graph.node.append(helper.make_node("MatMul", [read, name], [made]))
        weights.tofile(tmp_path / name)
        tensor = model.graph.initializer.add(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
    (tmp_path / "toy.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "away").mkdir()
    done = export(tmp_path / "toy.onnx", tmp_path / "away" / "m.onnx", size=(16, 16), threads=1)
    assert done.bytes < 60_000 and done.check is not None and done.check.identical
    assert (tmp_path / "away" / "w2").stat().st_size == 26_000 * 22_000 * 4 > 2**31


# --- what is refused --------------------------------------------------------------------------------------------


def wrong_finish(op: Any, *arguments: Any) -> Any:
    right = RIGHT_FINISH(op, *arguments)
    return dataclasses.replace(right, values=op.Mul(right.values, 0.999))


RIGHT_FINISH = exported.finished


def test_nothing_is_written_where_the_map_is_not_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "finished", wrong_finish)
    with pytest.raises(VerificationError, match=r"heat map of the exported file differs .* by 1\.0e-03") as raised:
        export(DEMO, tmp_path / "m.onnx", threads=1)
    assert raised.value.exit_code == 1 and list(tmp_path.iterdir()) == []
    assert export(DEMO, tmp_path / "m.onnx", verify=False, threads=1).check is None


def test_nothing_is_written_where_predictions_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exported._assembled

    def wrong(*arguments: Any) -> Any:
        model, names = right(*arguments)
        weight = next(t for t in model.graph.initializer if t.name == "0.classifier.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
        return model, names

    monkeypatch.setattr(exported, "_assembled", wrong)
    with pytest.raises(VerificationError, match="predictions of the exported file differ"):
        export(DEMO, tmp_path / "m.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["eigencam", "scorecam", "ablationcam", "rise", "kpcacam"])
def test_methods_that_finish_on_the_host_are_refused_with_those_that_do_not(tmp_path: Path, method: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        export(DEMO, tmp_path / "m.onnx", method=method)
    named = raised.value.hint.partition(": ")[2].split(", ")
    assert sorted(named) == sorted([*METHODS, "legrad"]) and f"`{method}`" in raised.value.message


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target": "no such class"}, "no class is called"),
    ({"target": 10}, "class 10 does not exist"),
    ({"target": [1, 11]}, "class 11 does not exist"),
    ({"target": 1, "top": 2}, "exclude each other"),
    ({"target": 1, "class_input": "required"}, "fixed and an input"),
    ({"class_input": "maybe"}, "unknown class input"),
    ({"top": 11}, "the top 11 classes"),
    ({"target": []}, "0 classes"),
    ({"overlay": True, "normalize": "none"}, "an overlay needs one map"),
    ({"overlay": True, "map_size": (9, 9)}, "an overlay needs one map"),
    ({"overlay": True, "opacity": 2.0}, "opacity"),
    ({"map_size": (100_000, 100_000)}, "a map of 100000x100000 holds more than"),
    ({"normalize": "l2"}, "unknown normalisation"),
    ({"method": "gradcan"}, "there is no method"),
    ({"layer": "nowhere"}, "no layer `nowhere`"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export(DEMO, tmp_path / "m.onnx", threads=1, **options)
    assert list(tmp_path.iterdir()) == []


def test_more_classes_than_one_run_can_explain_are_refused(tmp_path: Path) -> None:
    onnx.save(toy(classes=MAX_CLASSES + 1), tmp_path / "toy.onnx")
    with pytest.raises(UsageError, match=f"at most {MAX_CLASSES}"):
        export(tmp_path / "toy.onnx", tmp_path / "m.onnx", all_classes=True, threads=1)


def test_an_export_is_not_exported_again(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "m.onnx", threads=1)
    with pytest.raises(UsageError, match="an export of onnxcam already"):
        export(tmp_path / "m.onnx", tmp_path / "again.onnx")


def test_places_where_nothing_can_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        export(DEMO, tmp_path / "missing" / "m.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        export(DEMO, tmp_path)
    copy = tmp_path / "demo.onnx"
    copy.write_bytes(DEMO.read_bytes())
    with pytest.raises(OutputError, match="is the model itself"):
        export(copy, copy)
    assert copy.read_bytes() == DEMO.read_bytes()


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_tells_size_check_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.onnx"
    assert cli.main(["export", str(DEMO), "-o", str(file), "--target", "arrow", "--target", "1", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    added = file.stat().st_size - DEMO.stat().st_size
    assert f"{added:+,} bytes" in said and re.search(r"work +\+[\d,]+ multiply-adds \(\+\d\.\d%\)", said)
    assert "predictions identical to the model's" in said
    assert "x the plain model's time" in said
    assert run(file, image=pictures(1))["heatmap"].shape == (1, 2, 128, 128)


def test_the_command_prints_json_and_designed_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.onnx"
    assert cli.main(["export", str(DEMO), "-o", str(file), "--json", "--no-verify", "--class-input", "required"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == str(file) and record["check"] is None and record["inputs"] == ["image", "class_index"]
    assert cli.main(["export", str(DEMO), "-o", str(file), "--method", "eigencam"]) == 4
    for of_python in (["--eigen-smooth"], ["--seed", "0"], ["--batch-size", "2"], ["--provider", "cpu"]):
        assert cli.main(["export", str(DEMO), "-o", str(file), *of_python]) == 2
        assert f"{of_python[0]} is nothing that a file can do" in capsys.readouterr().err
    for of_overlay in (["--opacity", "0.3"], ["--colormap", "hot"]):
        assert cli.main(["export", str(DEMO), "-o", str(file), *of_overlay]) == 2
        assert f"{of_overlay[0]} is of the overlay" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "web"])
def test_what_only_python_can_do_is_not_offered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    offered = capsys.readouterr().out
    assert "--method" in offered
    for of_python in ("--eigen-smooth", "--aug-smooth", "--seed", "--batch-size", "--provider"):
        assert of_python not in offered
