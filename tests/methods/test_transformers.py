"""ViT-Recipro-CAM (against a rerun in float64) and LeGrad on the golden transformer, whose attention is spelt out."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from test_identities import double, network

from onnxcam import Explainer, export, rewrite
from onnxcam.errors import UnsupportedError
from onnxcam.runtime import Session

PARITY = Path(__file__).parents[1] / "parity"
NETWORKS = json.loads((PARITY / "goldens" / "goldens.json").read_text())["networks"]
GRID = (6, 9)


def file(name: str) -> Path:
    return PARITY / "goldens" / f"{name}.onnx"


def subject(name: str = "vit") -> tuple[np.ndarray, list[int]]:
    with np.load(PARITY / "goldens" / NETWORKS[name]["arrays"]) as stored:
        return stored["x"], NETWORKS[name]["classes"]["explicit"]


def times(model: ModelProto, value: str, mask: np.ndarray) -> ModelProto:
    """The whole model with a value multiplied by a mask before anybody reads it."""
    twin = ModelProto()
    twin.CopyFrom(model)
    position = next(i for i, n in enumerate(twin.graph.node) if value in n.output)
    twin.graph.node[position].output[0] = "before"
    twin.graph.initializer.append(numpy_helper.from_array(mask.astype(np.float32), "mask"))
    node = onnx.helper.make_node("Mul", ["before", "mask"], [value])
    twin.graph.node.insert(position + 1, node)
    return twin


# What is kept around a cell, by hand: a quarter of itself, an eighth beside it, a sixteenth across.
AROUND = {
    (0, 0): {(0, 0): 4, (0, 1): 8, (1, 0): 8, (1, 1): 16},
    (5, 8): {(5, 8): 4, (5, 7): 8, (4, 8): 8, (4, 7): 16},
    (2, 8): {(2, 8): 4, (1, 8): 8, (3, 8): 8, (2, 7): 8, (1, 7): 16, (3, 7): 16},
    (3, 4): {(3, 4): 4, (2, 4): 8, (4, 4): 8, (3, 3): 8, (3, 5): 8}
    | dict.fromkeys([(2, 3), (2, 5), (4, 3), (4, 5)], 16),
}


@pytest.mark.parametrize(("name", "prefix"), [("vit", 1), ("vit_gap", 0)])
def test_vit_reciprocam_equals_rerunning_the_whole_model_with_masked_tokens(name: str, prefix: int) -> None:
    x, classes = subject(name)
    explainer = Explainer(file(name), method="vitreciprocam", size=(24, 36), threads=1, batch_size=7)
    found = explainer.explain_tensor(x, classes)
    model = onnx.load(file(name))
    rerun = []
    for near in AROUND.values():
        mask = np.zeros((1, prefix + 54, 1))
        mask[0, :prefix] = 1
        for (row, column), divisor in near.items():
            mask[0, prefix + row * 9 + column] = 1 / divisor
        (logits,) = ReferenceEvaluator(double(times(model, explainer.layer, mask))).run(
            None, {"x": x.astype(np.float64)}
        )
        rerun.append([logits[i, c] for i, c in enumerate(classes)])
    for i, explanation in enumerate(found):
        got = np.array([explanation.raw[cell] for cell in AROUND])
        expected = np.array(rerun)[:, i]
        assert np.ptp(expected) > 1e-3
        np.testing.assert_allclose(got - got[0], expected - expected[0], rtol=0, atol=2e-6)
        assert explanation.raw.min() == 0


@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_legrad_is_the_mean_of_autograds_positive_attention_gradients(name: str) -> None:
    x, classes = subject(name)
    with np.load(PARITY / "goldens_more" / "legrad.npz") as stored:
        blocks = [stored[key].astype(np.float64) for key in sorted(stored) if key.startswith(f"{name}.")]
    tokens, prefix = blocks[0].shape[-1], blocks[0].shape[-1] - 54
    assert len(blocks) == {"vit": 2, "hybrid": 1}[name] and all(
        b.shape == (2, b.shape[1], tokens, tokens) for b in blocks
    )
    expected = np.mean([np.maximum(b, 0).mean(axis=(1, 2)) for b in blocks], axis=0)[:, prefix:].reshape(2, *GRID)
    found = Explainer(file(name), method="legrad", size=(24, 36), threads=1).explain_tensor(x, classes)
    for explanation, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(explanation.raw, wanted, rtol=1e-4, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcam++"])
@pytest.mark.parametrize("name", ["vit", "vit_gap", "hybrid"])
def test_several_classes_of_one_picture_go_on_from_its_tokens(name: str, method: str) -> None:
    """Each class as when it is asked alone: another run, of the whole model; here, one run and one of the head."""
    x, _ = subject(name)
    explainer = Explainer(file(name), method=method, size=(24, 36), threads=1)
    assert explainer._target_head is not None
    wanted = [2, None, 0, 1]
    alone = [explainer.explain_tensor(x[:1], target)[0] for target in wanted]
    fed: list[int] = []
    whole = explainer._session.run
    explainer._session.run = lambda feeds, outputs=None: (fed.append(len(feeds["x"])), whole(feeds, outputs))[1]  # type: ignore
    together = explainer.explain_targets(x[:1], wanted)
    assert fed == [1]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-4, atol=1e-6)
        assert (one.class_index, one.score) == (other.class_index, pytest.approx(other.score, rel=1e-6))
        assert one.top == other.top and one.label == other.label


def test_both_transformer_methods_of_another_layer_upstream() -> None:
    """LeGrad takes from the layer only how tokens lie; ViT-Recipro-CAM masks the layer that is named."""
    x, classes = subject()
    upstream = NETWORKS["vit"]["layers"]["middle"]["value"]
    for method, same in (("legrad", True), ("vitreciprocam", False)):
        last, other = (
            Explainer(file("vit"), method=method, layer=layer, size=(24, 36), threads=1).explain_tensor(x, classes)[0]
            for layer in (None, upstream)
        )
        assert np.array_equal(last.raw, other.raw) == same


def test_legrad_exports_as_a_map_on_the_tokens_grid(tmp_path: Path) -> None:
    done = export(file("vit"), tmp_path / "cam.onnx", method="legrad", size=(24, 36), with_raw=True)
    assert done.check is not None and done.check.heatmap < 1e-5
    x, _ = subject()
    raw = Session(onnx.load(tmp_path / "cam.onnx"), threads=1).run({"x": x})["heatmap_raw"]
    (plain, _) = Explainer(file("vit"), method="legrad", size=(24, 36), threads=1).explain_tensor(x)
    np.testing.assert_allclose(raw[0], plain.raw, rtol=1e-5, atol=1e-7)


REFUSED = [
    ("legrad", "vit_gap.dynamo.23", "Attention node `.*` keeps its own to itself", "attention spelt out"),
    ("legrad", "plain", "is no row of tokens", "choose a layer of tokens"),
    ("legrad", "mixer", r"no Softmax gives attention maps \(N, heads, 54, 54\)", "attend to each other"),
    ("vitreciprocam", "residual", "is no row of tokens", "`reciprocam`, which needs none"),
]


@pytest.mark.parametrize(("method", "name", "message", "hint"), REFUSED)
def test_models_without_open_attention_or_tokens_are_refused_with_what_works(
    method: str, name: str, message: str, hint: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as error:
        Explainer(file(name), method=method, size=(24, 36))
    assert hint in error.value.hint
    offered = error.value.hint.split("methods that work here: ")[1].split(", ")
    assert method not in offered and {"gradcam", "reciprocam", "dff"} <= {*offered}


def test_shapley_cam_at_a_row_of_tokens_takes_the_second_derivative_of_the_layer_as_it_lies() -> None:
    """H A by central differences of the gradient, the patches' tokens scaled by 1 + e and 1 - e."""
    x, _ = subject()
    layer, e = NETWORKS["vit"]["layers"]["last"]["value"], 1e-2
    model = onnx.load(file("vit"))

    def gradient(factor: float) -> np.ndarray:
        scale = np.full((1, 55, 1), factor)
        scale[0, 0] = 1
        return run(times(model, layer, scale), layer, x)["onnxcam_alpha"].astype(np.float64)

    a, g = run(model, layer, x)["onnxcam_activations"], gradient(1)
    product = (gradient(1 + e) - gradient(1 - e)) / (2 * e)
    assert np.abs(product).max() > 0.1 * np.abs(g).max()
    expected = ((g - product / 2).mean(axis=(2, 3), keepdims=True) * a).sum(axis=1)
    explainer = Explainer(model, method="shapleycam", size=(24, 36), threads=1)
    for explanation, wanted in zip(explainer.explain_tensor(x, 1), expected, strict=True):
        np.testing.assert_allclose(explanation.raw, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def run(model: ModelProto, layer: str, x: np.ndarray) -> dict[str, np.ndarray]:
    session = Session(rewrite(model, layer=layer, method="hirescam", size=(24, 36)), threads=1)
    return session.run({"x": x, "class_index": np.array([1])})


def test_attention_that_the_score_does_not_depend_on_counts_as_zero() -> None:
    """A map beside the path: the mean over blocks is over all of them."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        beside (float[N,2,2,2] x) => (float[N,2] z, float[N,1,4,4] other)
        <int64[3] rows = {0, 2, 4}, int64[1] one = {1}, int64[1] tokens = {1}, float[2] g = {1, 1}, float[2] b = {0, 0},
         float[2,2,1,1] w = {1, 0, 0, 1}>
        { c = Conv(x, w) r = Reshape(c, rows) t = Transpose<perm=[0,2,1]>(r)
          n = LayerNormalization<axis=-1>(t, g, b) k = Transpose<perm=[0,2,1]>(n) s = MatMul(n, k)
          u = Unsqueeze(s, one) p = Softmax<axis=-1>(u) other = Softmax<axis=-1>(u)
          v = Squeeze(p, one) y = MatMul(v, n) f = Add(t, y) z = ReduceMean<keepdims=0>(f, tokens) }""")
    alone = ModelProto()
    alone.CopyFrom(model)
    del alone.graph.output[1]
    alone.graph.node.remove(next(n for n in alone.graph.node if n.output[0] == "other"))
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 2)).astype(np.float32)
    with_other, without = (
        Explainer(m, method="legrad", layer="n", output="z", threads=1).explain_tensor(x, 0)[0] for m in (model, alone)
    )
    assert without.raw.max() > 1e-3
    np.testing.assert_allclose(2 * with_other.raw, without.raw, rtol=1e-6)


def test_a_convolutional_model_is_not_offered_the_methods_of_transformers() -> None:
    for method in ("legrad", "vitreciprocam"):
        with pytest.raises(UnsupportedError, match="is no row of tokens"):
            Explainer(network(0), method=method)
