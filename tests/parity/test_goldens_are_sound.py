"""The golden data of this folder agree with the ONNX files beside them and with themselves (made as README.md says)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

GOLDENS = Path(__file__).parent / "goldens"
INDEX: dict[str, Any] = json.loads((GOLDENS / "goldens.json").read_text())["networks"]
EXPORTS = [(name, export) for name, entry in INDEX.items() for export in entry["exports"]]


def golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A network's entry in the index and its arrays."""
    with np.load(GOLDENS / INDEX[name]["arrays"]) as arrays:
        return INDEX[name], dict(arrays)


def run(model: onnx.ModelProto, x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
    """Named values of the model at `x` in ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=o) for o in outputs if o not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"x": x})


@pytest.mark.parametrize(("name", "export"), EXPORTS, ids=[export["onnx"] for _, export in EXPORTS])
def test_every_export_reproduces_the_logits_and_activations_of_pytorch(name: str, export: dict[str, Any]) -> None:
    entry, arrays = golden(name)
    model = onnx.load(GOLDENS / export["onnx"])
    assert model.opset_import[0].version == export["opset"]
    if export["onnx"] == entry["onnx"]:
        assert export["layers"] == {layer: at["value"] for layer, at in entry["layers"].items()}
    logits, *activations = run(model, arrays["x"], [entry["output"], *export["layers"].values()])
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-4)
    for layer, A in zip(export["layers"], activations, strict=True):
        np.testing.assert_allclose(A, arrays[f"A.{layer}"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", INDEX)
def test_predicted_classes_are_the_argmax_and_explicit_ones_differ_between_samples(name: str) -> None:
    entry, arrays = golden(name)
    assert entry["classes"]["predicted"] == arrays["logits"].argmax(1).tolist()
    for key in ("explicit", "explicit2"):
        assert len(set(entry["classes"][key])) == len(arrays["x"])
        assert all(c != p for c, p in zip(entry["classes"][key], entry["classes"]["predicted"], strict=True))


@pytest.mark.parametrize("name", INDEX)
def test_every_listed_map_spans_the_unit_interval_except_where_the_index_says_it_is_empty(name: str) -> None:
    entry, arrays = golden(name)
    n, _, h, w = arrays["x"].shape
    for recipe in entry["maps"]:
        values = arrays[recipe["key"]]
        assert values.shape == (n, h, w) and values.dtype == np.float32
        peak = values.max((1, 2))
        assert np.flatnonzero(peak == 0).tolist() == recipe["empty"]
        if not recipe.get("aug_smooth"):  # the mean of six maps is not normalised again
            np.testing.assert_array_equal(values.min((1, 2)), 0.0)
            np.testing.assert_allclose(peak[peak > 0], 1.0, atol=1e-5)


def channels_first(values: np.ndarray, layout: dict[str, Any]) -> np.ndarray:
    """Activations or gradients as (N, K, h, w)."""
    if layout["kind"] == "tokens":
        h, w = layout["grid"]
        values = values[:, layout["class_tokens"] :].reshape(len(values), h, w, -1)
    return values if layout["kind"] == "channels_first" else values.transpose(0, 3, 1, 2)


def enlarge(size: int, length: int) -> np.ndarray:
    """Matrix (length, size) of linear interpolation with half-pixel centres."""
    at = np.clip((np.arange(length) + 0.5) * size / length - 0.5, 0, size - 1)
    return np.stack([np.interp(at, np.arange(size), unit) for unit in np.eye(size)], axis=1)


def min_max(maps: np.ndarray) -> np.ndarray:
    """Each map (h, w) onto [0, 1]."""
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / (1e-7 + maps.max((1, 2), keepdims=True))


RAW = {
    "gradcam": lambda A, G: (G.mean((2, 3), keepdims=True) * A).sum(1),
    "hirescam": lambda A, G: (G * A).sum(1),
    "layercam": lambda A, G: (np.maximum(G, 0) * A).sum(1),
    "gradcamelementwise": lambda A, G: np.maximum(G * A, 0).sum(1),
    "xgradcam": lambda A, G: ((G * A).sum((2, 3), keepdims=True) / (A.sum((2, 3), keepdims=True) + 1e-7) * A).sum(1),
}


PLAIN = {"method", "layers", "classes", "key", "float32_noise", "empty"}  # a recipe without options
FOLLOWING = [(n, r) for n, entry in INDEX.items() for r in entry["maps"] if r["method"] in RAW and set(r) == PLAIN]


@pytest.mark.parametrize("method", RAW)
def test_maps_of_the_peer_follow_from_the_stored_activations_and_gradients(method: str) -> None:
    recipes = [(name, recipe) for name, recipe in FOLLOWING if recipe["method"] == method]
    assert recipes
    for name, recipe in recipes:
        entry, arrays = golden(name)
        H, W = arrays["x"].shape[2:]
        layers = []
        for layer in recipe["layers"]:
            A, G = (
                channels_first(arrays[key].astype(np.float64), entry["layout"])
                for key in (f"A.{layer}", f"G.{layer}.{recipe['classes']}")
            )
            raw = min_max(np.maximum(RAW[method](A, G), 0))
            layers.append(enlarge(raw.shape[1], H) @ raw @ enlarge(raw.shape[2], W).T)
        expected = min_max(np.mean(layers, axis=0))
        np.testing.assert_allclose(arrays[recipe["key"]], expected, atol=1e-5, err_msg=f"{name} {recipe['key']}")


def test_the_gradient_at_the_input_is_the_slope_of_the_class_score_in_onnx_runtime() -> None:
    entry, arrays = golden("smooth")  # no kinks, so a central difference is accurate
    x, G, classes = arrays["x"], arrays["G.input.explicit"], entry["classes"]["explicit"]
    step = 0.01 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    model = onnx.load(GOLDENS / entry["onnx"])
    up, down = (run(model, x + sign * step, ["logits"])[0][range(len(classes)), classes] for sign in (1, -1))
    np.testing.assert_allclose((up - down) / 2, (G * step).sum((1, 2, 3)), rtol=1e-3)


def test_shapley_cam_is_grad_cam_exactly_where_the_head_has_no_second_derivative() -> None:
    def difference(name: str) -> float:
        arrays = golden(name)[1]
        return float(np.abs(arrays["shapleycam.last.explicit"] - arrays["gradcam.last.explicit"]).max())

    assert difference("plain") == difference("residual") == difference("branches") == 0
    assert difference("smooth") > 0.1


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*")), ids=lambda p: p.name)
def test_files_hold_no_stack_traces_or_paths(path: Path) -> None:
    content = path.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"/home/", b'File "'):
        assert path.suffix == ".npz" or trace not in content
