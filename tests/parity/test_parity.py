"""onnxcam against pytorch-grad-cam and PyTorch autograd, on the golden networks (see README.md here)."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import Explainer
from onnxcam.autodiff import differentiate
from onnxcam.explained import run_once
from onnxcam.explanation import Explanation
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.layers import Layers
from onnxcam.graph.load import load
from onnxcam.graph.read import read
from onnxcam.graph.signature import image_input
from onnxcam.methods import METHODS
from onnxcam.preprocess import View
from onnxcam.runtime import Session
from onnxcam.saliency import saliency_maps

pytest.importorskip("onnxruntime")

GOLDENS = Path(__file__).parent / "goldens"
NETWORKS: dict[str, Any] = json.loads((GOLDENS / "goldens.json").read_text())["networks"]
SCORES = {None: "logit", "softmax": "probability", "rest": "rest"}
KNOWN = {"method", "layers", "classes", "key", "float32_noise", "empty", "target", "eigen_smooth", "base", "alpha"}
KNOWN |= {"aug_smooth"}
# A quotient whose denominator comes near zero. On transformers 1e-4: Grad-CAM++ loses digits there, see README.md.
TOLERANCE = {"xgradcam": 2e-5}
# Principal components whose sign the peer leaves to LAPACK; SegEigenCAM fixes it as we do.
FREE_SIGN = ("eigencam", "eigengradcam", "kpcacam")


@cache
def arrays(network: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / NETWORKS[network]["arrays"]) as stored:
        return dict(stored)


def options(network: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """A golden's recipe as options of an Explainer."""
    chosen = {"method": recipe["method"], "score": SCORES[recipe.get("target")], "fuse": "mean"}
    if recipe["method"] == "finercam":
        chosen |= {"method": recipe.get("base", "gradcam"), "score": "finer"}
    if recipe["method"] == "refinecam":
        chosen |= {"method": recipe.get("base", "gradcam++"), "fuse": "product"}
    if recipe["method"] == "ablationcam" and network == "smooth":  # negative activations: the peer leaves the paper
        chosen["method_options"] = {"quirks": "pytorch-grad-cam"}
    layers = NETWORKS[network]["layers"]
    chosen["layer"] = [layers[name]["value"] for name in recipe["layers"]]
    return chosen | {name: recipe.get(name, False) for name in ("eigen_smooth", "aug_smooth")}


def comparable(network: str, recipe: dict[str, Any]) -> bool:
    return (
        recipe["method"] in {*METHODS, "finercam", "refinecam"}
        and set(recipe) <= KNOWN
        and recipe.get("alpha", 1) == 1
        and not (recipe["method"] == "fullgrad" and recipe.get("eigen_smooth"))  # the peer smooths sums of layers
        and not (recipe.get("aug_smooth") and recipe.get("eigen_smooth"))  # a sum of maps whose signs LAPACK chose
    )


MAPS = [
    pytest.param(name, recipe, id=f"{name}-{recipe['key']}")
    for name, entry in NETWORKS.items()
    for recipe in entry["maps"]
    if comparable(name, recipe)
]


def compared(network: str, recipe: dict[str, Any]) -> Iterator[tuple[Explanation, np.ndarray, np.ndarray]]:
    """Per sample the explanation, its values, turned where only the sign of a component differs, and the golden."""
    entry, stored = NETWORKS[network], arrays(network)
    explainer = Explainer(GOLDENS / entry["onnx"], size=stored["x"].shape[2:], threads=1, **options(network, recipe))
    explanations = explainer.explain_tensor(stored["x"], entry["classes"][recipe["classes"]])
    for explanation, golden in zip(explanations, stored[recipe["key"]], strict=True):
        values = explanation.values
        if recipe["method"] in FREE_SIGN or recipe.get("eigen_smooth"):
            view = View.identity(values.shape)
            flipped = saliency_maps([-explanation.raw[np.newaxis]], [view])[0]
            values = min(values, flipped, key=lambda v: float(np.abs(v - golden).max()))
        yield explanation, values, golden


@pytest.mark.parametrize(("network", "recipe"), MAPS)
def test_maps_equal_those_of_pytorch_grad_cam(network: str, recipe: dict[str, Any]) -> None:
    cnn = NETWORKS[network]["layout"]["kind"] == "channels_first"
    tolerance = (TOLERANCE.get(recipe["method"], 1e-5) if cnn else 1e-4) + recipe["float32_noise"]
    for i, (explanation, values, golden) in enumerate(compared(network, recipe)):
        np.testing.assert_allclose(values, golden, rtol=0, atol=tolerance)
        assert explanation.is_empty == (i in recipe["empty"])


def test_goldens_cover_both_methods_on_four_networks_at_two_layers() -> None:
    covered = {(p.values[0], p.values[1]["method"], *p.values[1]["layers"][:1]) for p in MAPS}
    four = ("plain", "residual", "depthwise", "branches")
    assert {(n, m, x) for n in four for m in ("gradcam", "hirescam") for x in ("middle", "last")} <= covered


@pytest.mark.parametrize(
    ("network", "export"),
    [
        pytest.param(name, export, id=export["onnx"])
        for name, entry in NETWORKS.items()
        for export in entry["exports"]
        if name != "hybrid"
    ],
)
def test_the_automatic_layer_is_the_one_that_pytorch_grad_cam_recommends(network: str, export: dict[str, Any]) -> None:
    file = read(GOLDENS / export["onnx"])
    image = image_input(file.model, file.name)
    graph = load(file, {image.name: image.bound((24, 36))}, run_once(file, image, (24, 36)))
    layers = Layers(graph, image.name, image.layout, graph.outputs[0])
    assert layers.automatic.name == export["layers"]["last"]


EXPORTS = [
    pytest.param(name, export, id=export["onnx"]) for name, entry in NETWORKS.items() for export in entry["exports"]
]


@pytest.mark.parametrize(("network", "export"), EXPORTS)
def test_gradients_equal_autograd_for_both_exporters_and_every_opset(network: str, export: dict[str, Any]) -> None:
    entry, stored = NETWORKS[network], arrays(network)
    file = read(GOLDENS / export["onnx"])
    x = stored["x"]
    image = image_input(file.model, file.name)
    graph = load(file, {entry["input"]: image.bound(x.shape[2:])}, run_once(file, image, x.shape[2:]))
    classes = np.asarray(entry["classes"]["explicit"])
    one_hot = np.eye(stored["logits"].shape[1], dtype=np.float32)[classes]
    wanted = {"input": entry["input"], **export["layers"]}
    for where, value in wanted.items():
        op = Builder(graph)
        logits = graph.outputs[0]
        gradient = differentiate(graph, op, logits, [value], cotangent=op.constant(one_hot))[value]
        model = op.model([tensor_info(gradient, 1, None)])
        got = Session(model, threads=1).run({entry["input"]: x}, [gradient])[gradient]
        golden = stored[f"G.{where}.explicit"]
        assert got.shape == golden.shape
        np.testing.assert_allclose(got, golden, rtol=1e-4, atol=1e-4 * float(np.abs(golden).max()))
