"""Writes the golden data of this folder: needs PyTorch and pytorch-grad-cam, see README.md.

    python make_goldens.py [--preload MODULE.py] [--out DIRECTORY]

Each network is exported to ONNX; maps come from pytorch-grad-cam in float32, gradients from autograd in float64.
"""

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import onnx
import onnxruntime
import torch
from networks import NETWORKS, build, picture
from torch import Tensor, nn

CNNS = ("plain", "residual", "depthwise", "branches")
METHODS = {
    "gradcam": "GradCAM",
    "hirescam": "HiResCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "segeigencam": "SegEigenCAM",
    "kpcacam": "KPCA_CAM",
    "fem": "FEM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
    "shapleycam": "ShapleyCAM",
    "fullgrad": "FullGrad",
    "finercam": "FinerCAM",
    "refinecam": "RefineCAM",
}
EXPORTS = [("legacy", 11), ("legacy", 13), ("legacy", 17), ("dynamo", 18), ("dynamo", 20), ("dynamo", 23)]
STABLE = 1e-5  # a map is stored when the same computation in float64 agrees this well
MATCH = 1e-5  # an ONNX value is the module's output when it differs by less than this

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


# --- ONNX ---------------------------------------------------------------------------------------------------------


def strip(message: Any) -> None:
    """Removes every doc string and metadata property, at any depth: exporters put stack traces and paths there."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                strip(child)


def to_onnx(name: str, *, dynamo: bool, opset: int) -> onnx.ModelProto:
    """The network as ONNX with a symbolic batch axis, input `x`, output `logits`."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"], "opset_version": opset}
    if dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("N")},)
    else:
        options["dynamic_axes"] = {"x": {0: "N"}, "logits": {0: "N"}}
        if name == "residual":  # the other networks get their BatchNorm folded into the convolution
            options["training"] = torch.onnx.TrainingMode.PRESERVE
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        program = torch.onnx.export(build(name), (picture(name),), None if dynamo else buffer, dynamo=dynamo, **options)
    model = program.model_proto if dynamo else onnx.load_from_string(buffer.getvalue())
    strip(model)
    model.producer_name, model.producer_version = "pytorch", torch.__version__
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset, (name, model.opset_import)
    return model


def all_values(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every intermediate value of the model at `x`, in topological order."""
    exposed = copy.deepcopy(model)
    names = [o for node in model.graph.node for o in node.output if o]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, {"x": x}), strict=True))


def value_equal_to(values: dict[str, np.ndarray], A: np.ndarray) -> str | None:
    """The first value with the shape of `A` and within MATCH of it, None where the exporter fused it away."""
    scale = max(1.0, float(np.abs(A).max()))
    for name, value in values.items():
        if value.shape == A.shape and np.abs(value - A).max() < MATCH * scale:
            return name
    return None


# --- PyTorch ------------------------------------------------------------------------------------------------------


def explained_classes(logits: np.ndarray) -> dict[str, list[int]]:
    """Three class lists; the two explicit ones name different classes for the two samples."""
    order = np.argsort(-logits, axis=1)
    lists = {"predicted": order[:, 0].tolist()}
    first = [int(order[0, 1]), next(int(c) for c in order[1, 2:] if c != order[0, 1])]
    second = [int(order[0, 3]), next(int(c) for c in order[1, 3:] if c not in (order[0, 3], first[1]))]
    return lists | {"explicit": first, "explicit2": second}


def gradients(
    module: nn.Module, paths: list[str], x: Tensor, classes: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs A of the modules at `paths`, and d(sum of class logits) / d(each A, then x); as precise as x."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(p).register_forward_hook(lambda _m, _i, out, p=p: outputs.__setitem__(p, out))
        for p in paths
    ]
    x = x.clone().requires_grad_()
    score = module(x)[torch.arange(len(classes)), classes].sum()
    for handle in handles:
        handle.remove()
    A = [outputs[p] for p in paths]
    G = torch.autograd.grad(score, [*A, x])
    return [a.detach().numpy() for a in A], [g.numpy() for g in G]


def reshape_transform(layout: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """From the network's activations to (N, K, h, w); None where they are that already."""
    if layout["kind"] == "channels_first":
        return None
    if layout["kind"] == "channels_last":
        return lambda t: t.permute(0, 3, 1, 2)
    skip, (h, w) = layout["class_tokens"], layout["grid"]
    return lambda t: t[:, skip:].reshape(len(t), h, w, -1).permute(0, 3, 1, 2)


def recipes(name: str) -> Iterator[dict[str, Any]]:
    """What is stored for a network, one map each: method, target layers, classes, then whatever is not the default."""
    lists = ("predicted", "explicit", "explicit2") if name in CNNS else ("predicted", "explicit")
    for method in ("gradcam", "hirescam"):
        for layer in ("middle", "last"):
            for classes in lists:
                yield {"method": method, "layers": [layer], "classes": classes}
    if name not in (*CNNS, "smooth"):
        for method in ("layercam", "gradcam++", "eigencam"):
            yield {"method": method, "layers": ["last"], "classes": "explicit"}
        if (
            name == "convnext"
        ):  # the peer's Shapley-CAM fails on tokens, PyTorch's fused attention on second derivatives
            yield {"method": "shapleycam", "layers": ["last"], "classes": "explicit"}
        return

    at_last = {"layers": ["last"], "classes": "explicit"}
    for method in METHODS:
        if method not in ("gradcam", "hirescam", "fullgrad", "finercam", "refinecam"):
            yield {"method": method, **at_last}
    yield {"method": "fullgrad", "layers": [], "classes": "explicit"}
    yield {"method": "finercam", "layers": ["last"], "classes": "predicted"}
    yield {"method": "refinecam", "layers": ["middle", "last"], "classes": "explicit"}
    for method in ("gradcam", "layercam"):
        yield {"method": method, "layers": ["middle", "last"], "classes": "explicit"}
    for target in ("softmax", "rest"):
        yield {"method": "gradcam", **at_last, "target": target}
    yield {"method": "gradcam", **at_last, "eigen_smooth": True}
    yield {"method": "gradcam", **at_last, "aug_smooth": True}
    if name in ("plain", "smooth"):
        yield {"method": "gradcam", **at_last, "eigen_smooth": True, "aug_smooth": True}
        for method in ("hirescam", "layercam", "fullgrad"):
            layers = [] if method == "fullgrad" else ["last"]
            yield {"method": method, "layers": layers, "classes": "explicit", "eigen_smooth": True}
        yield {"method": "finercam", "layers": ["last"], "classes": "predicted", "alpha": 0.6, "base": "hirescam"}
        yield {"method": "refinecam", "layers": ["middle", "last"], "classes": "explicit", "base": "hirescam"}


def key_of(recipe: dict[str, Any]) -> str:
    """The name under which a map is stored."""
    extras = [f"{k}={v}" if not isinstance(v, bool) else k for k, v in list(recipe.items())[3:]]
    return ".".join([recipe["method"], "+".join(recipe["layers"]) or "all", recipe["classes"], *extras])


def map_of(
    module: nn.Module, name: str, recipe: dict[str, Any], classes: dict[str, list[int]], x: Tensor
) -> np.ndarray:
    """pytorch-grad-cam's map (N, H, W) for one recipe, on a copy: several of its methods replace modules."""
    import pytorch_grad_cam as peer
    from pytorch_grad_cam.utils import model_targets

    network, module = NETWORKS[name], copy.deepcopy(module)
    make = {
        "logit": model_targets.ClassifierOutputTarget,
        "softmax": model_targets.ClassifierOutputSoftmaxTarget,
        "rest": model_targets.ClassifierOutputReST,
    }[recipe.get("target", "logit")]
    targets = [make(c) for c in classes[recipe["classes"]]]
    layers = [
        module.get_submodule({"middle": network.middle, "last": network.last}[layer]) for layer in recipe["layers"]
    ]
    options = {"base_method": getattr(peer, METHODS[recipe["base"]])} if "base" in recipe else {}
    with contextlib.redirect_stdout(io.StringIO()):
        cam = getattr(peer, METHODS[recipe["method"]])(
            module, layers, reshape_transform=reshape_transform(network.layout), **options
        )
        if recipe["method"] == "finercam":  # chooses its own classes: the predicted one against the next three
            return cam(x, None, alpha=recipe.get("alpha", 1.0))
        smooth = {k: recipe[k] for k in ("eigen_smooth", "aug_smooth") if k in recipe}
        return cam(x, targets, **smooth)


def guided_backprop(module: nn.Module, x: Tensor, classes: list[int]) -> np.ndarray:
    """pytorch-grad-cam's guided backpropagation (N, H, W, 3); one sample at a time, as it reads only the first."""
    import pytorch_grad_cam as peer

    one = [peer.GuidedBackpropReLUModel(copy.deepcopy(module))(x[[i]].clone(), c) for i, c in enumerate(classes)]
    return np.stack(one)


# --- one network --------------------------------------------------------------------------------------------------


def golden(name: str, out: Path) -> dict[str, Any]:
    """Writes `<name>.npz`, `<name>.onnx` (legacy exporter, opset 17) and the other exports; returns the index entry."""
    network, module, x = NETWORKS[name], build(name), picture(name)
    double, x64 = build(name).double(), x.double()
    with torch.no_grad():
        logits = module(x).numpy()
    two_best = np.sort(logits, axis=1)[:, -2:]
    assert (two_best[:, 1] - two_best[:, 0]).min() > 0.05, f"{name}: the predicted class is nearly a tie"
    classes = explained_classes(logits)
    paths = {"middle": network.middle, "last": network.last}
    arrays = {"x": x.numpy(), "logits": logits}
    for key, chosen in classes.items():
        A, G = gradients(double, list(paths.values()), x64, chosen)
        for layer, a, g in zip(paths, A, G, strict=False):
            arrays[f"A.{layer}"] = a.astype(np.float32)
            arrays[f"G.{layer}.{key}"] = g.astype(np.float32)
            assert np.abs(g).max() > 1e-4, f"{name}: no gradient at {layer}"
        for g, g32 in zip(G, gradients(module, list(paths.values()), x, chosen)[1], strict=True):
            assert np.abs(g - g32).max() < STABLE * max(1.0, np.abs(g).max()), f"{name}: a kink is too near"
        if key == "explicit":
            arrays[f"G.input.{key}"] = G[-1].astype(np.float32)

    if name in ("plain", "residual", "branches"):
        arrays["guidedbackprop.explicit"] = guided_backprop(module, x, classes["explicit"])

    maps: list[dict[str, Any]] = []
    unstable: list[dict[str, Any]] = []
    for recipe in recipes(name):
        key = key_of(recipe)
        values = map_of(module, name, recipe, classes, x)
        reference = map_of(double, name, recipe, classes, x64)
        assert values.dtype == np.float32 and values.shape == (x.shape[0], *x.shape[2:]), key
        noise = float(np.abs(values - reference).max())
        empty = np.flatnonzero(values.max((1, 2)) == 0).tolist()  # samples with nothing positive to show
        entry = recipe | {"key": key, "float32_noise": float(f"{noise:.1e}"), "empty": empty}
        if noise < STABLE:
            arrays[key] = values
            maps.append(entry)
        else:
            unstable.append(entry)

    exports, refused = [], []
    for exporter, opset in EXPORTS:
        try:
            model = to_onnx(name, dynamo=exporter == "dynamo", opset=opset)
        except torch.onnx.errors.UnsupportedOperatorError as error:
            refused.append({"exporter": exporter, "opset": opset, "why": str(error).partition(". ")[0]})
            continue
        values = all_values(model, x.numpy())
        found = {layer: value_equal_to(values, arrays[f"A.{layer}"]) for layer in paths}
        file = f"{name}.onnx" if opset == 17 else f"{name}.{exporter}.{opset}.onnx"
        onnx.save(model, out / file)
        exports.append({"exporter": exporter, "opset": opset, "onnx": file, "layers": found})
        assert None not in found.values(), f"{file}: no value equals the output of {found}"
    np.savez_compressed(out / f"{name}.npz", **arrays)
    return {
        "onnx": f"{name}.onnx",
        "arrays": f"{name}.npz",
        "input": "x",
        "output": "logits",
        "layout": network.layout,
        "layers": {
            layer: {"module": path, "value": next(e for e in exports if e["opset"] == 17)["layers"][layer]}
            for layer, path in paths.items()
        },
        "classes": classes,
        "maps": maps,
        "unstable": unstable,
        "exports": exports,
        "refused": refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "goldens", help="default: %(default)s")
    parser.add_argument("--preload", type=Path, help="a module to import before torchvision (for a CPU-only PyTorch)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if arguments.preload:
        spec = importlib.util.spec_from_file_location("preload", arguments.preload)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    arguments.out.mkdir(parents=True, exist_ok=True)
    index = {
        "made_with": {p: importlib.metadata.version(p) for p in ("torch", "grad-cam", "onnx", "numpy")},
        "networks": {name: golden(name, arguments.out) for name in NETWORKS},
    }
    (arguments.out / "goldens.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
