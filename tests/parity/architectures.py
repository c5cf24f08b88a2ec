"""Every architecture family against pytorch-grad-cam: writes the table of docs/architectures.md.

    python architectures.py export DIRECTORY [NAME ...] [--preload MODULE.py]   needs torch, torchvision, timm, grad-cam
    python architectures.py compare DIRECTORY [NAME ...] [--table FILE.md]      needs onnxcam

`export` builds each network with seeded random weights, exports it with both exporters and stores pytorch-grad-cam's
map at the layer that its README, or the family's convention, recommends. `compare` lets onnxcam choose the layer.
Neither is part of the test run.
"""

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np

SIZE = (64, 96)  # H, W: not square, so that a grid turned on its side shows
CLASSES = 50
EXPORTS = {"legacy": 17, "dynamo": 20}
SAMPLES = 24  # positions at which a module's output is remembered, to say which module a value is
CLOSE = 2e-4  # relative to the largest activation: the same layer
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Architecture:
    """A network and the module whose output is to be explained.

    lies: how that output lies: `nchw`, `nhwc`, of volumes `ncdhw`, `ndhwc`, or `tokens:PREFIX/STRIDE`, the grid being
    the size over the stride.
    options: of the library's constructor; a smaller depth or width where the mechanism stays the same. calibration:
    how many samples the statistics of BatchNorms are taken over.
    """

    name: str
    layer: str
    lies: str = "nchw"
    size: tuple[int, ...] = SIZE
    options: tuple[tuple[str, Any], ...] = ()
    calibration: int = 4

    @property
    def library(self) -> str:
        return self.name.partition("/")[0]


def _torchvision() -> Iterator[Architecture]:
    def row(name: str, *arguments: Any, **options: Any) -> Architecture:
        return Architecture(f"torchvision/{name}", *arguments, options=tuple(options.items()))

    yield row("alexnet", "features", "nchw", (224, 224))
    yield row("vgg16", "features", "nchw", (224, 224))
    yield row("vgg11_bn", "features", "nchw", (224, 224))
    for name in ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"):
        yield row(name, "layer4.-1")
    yield row("densenet121", "features")
    yield row("googlenet", "inception5b", "nchw", (96, 128), aux_logits=False, init_weights=False)
    yield row("inception_v3", "Mixed_7c", "nchw", (160, 192), aux_logits=False, init_weights=False)
    yield row("squeezenet1_1", "features")
    for name in ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny"):
        yield row(name, "features.-1")
    yield row("mnasnet1_0", "layers.-1")
    yield row("shufflenet_v2_x1_0", "conv5")
    for name in ("regnet_x_400mf", "regnet_y_400mf"):
        yield row(name, "trunk_output")
    vit = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 192}
    yield row("VisionTransformer", "encoder.layers.-1.ln_1", "tokens:1/16", (64, 64), **vit)
    yield row("swin_t", "features.-1.-1.norm1", "nhwc", (160, 224))
    yield row("swin_v2_t", "features.-1", "nhwc", (192, 256))
    yield row("maxvit_t", "blocks.-1", "nchw", (224, 224))
    for name in ("video.r3d_18", "video.mc3_18", "video.r2plus1d_18"):
        yield row(name, "layer4.-1", "ncdhw", (16, 48, 64))
    yield row("video.swin3d_t", "features.-1.-1.norm1", "ndhwc", (8, 96, 128))


def _timm() -> Iterator[Architecture]:
    def row(name: str, *arguments: Any, **options: Any) -> Architecture:
        return Architecture(f"timm/{name}", *arguments, options=tuple(options.items()))

    norm1 = "blocks.-1.norm1"
    small = {"img_size": SIZE, "depth": 4}
    yield row("vit_tiny_patch16_224", norm1, "tokens:1/16", img_size=SIZE)
    yield row("vit_base_patch16_224", norm1, "tokens:1/16", (224, 224))
    yield row("vit_tiny_patch16_224", norm1, "tokens:0/16", **small, class_token=False, global_pool="avg")
    yield row("vit_small_patch14_reg4_dinov2", norm1, "tokens:5/14", (70, 98), img_size=(70, 98), depth=4)
    yield row("vit_medium_patch16_reg4_gap_256", norm1, "tokens:4/16", **small)
    yield row("deit_tiny_patch16_224", norm1, "tokens:1/16", img_size=SIZE)
    yield row("deit_tiny_distilled_patch16_224", norm1, "tokens:2/16", img_size=SIZE)
    yield row("deit3_small_patch16_224", norm1, "tokens:1/16", **small)
    yield row("beit_base_patch16_224", norm1, "tokens:1/16", **small, embed_dim=192, num_heads=3)
    yield row("eva02_tiny_patch14_224", norm1, "tokens:1/14", (70, 98), img_size=(70, 98), depth=4)
    yield row("convit_tiny", norm1, "tokens:1/16", (96, 96), img_size=(96, 96))
    yield row("cait_xxs24_224", "blocks_token_only.-1.norm1", "tokens:1/16", **small)
    yield row("xcit_nano_12_p16_224", "cls_attn_blocks.-1.norm1", "tokens:1/16", **small)
    yield row("volo_d1_224", "post_network.-1.norm1", "tokens:1/16", (96, 96), img_size=(96, 96))
    yield row("swin_tiny_patch4_window7_224", "layers.-1.blocks.-1.norm1", "nhwc", (224, 224))
    yield row("swinv2_tiny_window8_256", "layers.-1", "nhwc", (256, 256))
    yield row("twins_svt_small", "blocks.-1.-1.norm1", "tokens:0/32", (160, 224), img_size=(160, 224))
    yield row("twins_pcpvt_small", "blocks.-1.-1.norm1", "tokens:0/32", (160, 224), img_size=(160, 224))
    yield row("hiera_tiny_224", "blocks.-1.norm1", "tokens:0/32", (224, 224))
    yield row("nest_tiny", "norm", "nhwc", (224, 224))
    yield row("coat_lite_tiny", "serial_blocks4.-1.norm1", "tokens:1/32", (160, 224), img_size=(160, 224))
    yield row("pvt_v2_b0", "stages.-1.blocks.-1.norm1", "tokens:0/32", (160, 224))
    levit = row("levit_128s", "stages.-1", "tokens:0/64", (224, 224))
    yield replace(levit, calibration=32)  # norms behind attention see means over tokens: few samples vary too little
    yield row("mixer_s16_224", norm1, "tokens:0/16", (64, 96), img_size=(64, 96))
    yield row("resmlp_12_224", norm1, "tokens:0/16", (64, 96), img_size=(64, 96))
    yield row("gmlp_ti16_224", "blocks.-1.norm", "tokens:0/16", (64, 96), img_size=(64, 96))
    yield row("convnext_atto", "stages.-1")
    yield row("convnextv2_atto", "stages.-1")
    yield row("poolformer_s12", "stages.-1")
    yield row("mobilevit_xxs", "final_conv", "nchw", (128, 192))
    yield row("mobilevitv2_050", "stages.-1", "nchw", (128, 192))
    yield row("efficientformer_l1", "stages.-1.blocks.-1.norm1", "tokens:0/32", (224, 224))
    yield row("efficientformerv2_s0", "stages.-1", "nchw", (224, 224))
    yield row("tiny_vit_5m_224", "stages.-1.blocks.-1.attn.norm", "tokens:0/32", (224, 224))
    yield row("fastvit_t8", "final_conv", "nchw", (128, 192))
    yield row("edgenext_xx_small", "stages.-1", "nchw", (128, 192))
    yield row("davit_tiny", "stages.-1.blocks.-1.-1.norm1", "tokens:0/32", (224, 224))
    yield row("focalnet_tiny_srf", "layers.-1", "nchw", (128, 192))
    yield row("coatnet_nano_rw_224", "stages.-1", "nchw", (224, 224))
    yield row("maxxvit_rmlp_nano_rw_256", "stages.-1", "nchw", (256, 256))
    yield row("visformer_tiny", "norm", "nchw", (224, 224))
    yield row("efficientvit_b0", "head.in_conv", "nchw", (128, 192))
    yield row("inception_next_atto", "stages.-1", "nchw", (128, 192))
    yield row("mambaout_femto", "stages.-1", "nhwc", (128, 192))
    yield row("repvit_m0_9", "stages.-1", "nchw", (128, 192))
    yield row("ghostnet_100", "blocks.-1")
    yield row("hrnet_w18_small", "final_layer", "nchw", (128, 192))
    yield row("nfnet_l0", "final_act")
    yield row("repvgg_a0", "stages.-1")
    yield row("mobileone_s0", "stages.-1")
    yield row("dla34", "level5")
    yield row("res2net50_26w_4s", "layer4.-1")
    yield row("skresnet18", "layer4.-1")
    yield row("resnet10t", "layer4.-1")
    yield row("cspdarknet53", "stages.-1")
    yield row("tf_efficientnetv2_b0", "bn2")
    yield row("mobilenetv4_conv_small", "blocks.-1")
    yield row("rexnet_100", "features.-1")
    yield row("starnet_s1", "norm")


ARCHITECTURES = (*_torchvision(), *_timm())


def stem(architecture: Architecture) -> str:
    return architecture.name.replace("/", "-") + ("-false" if _variant(architecture) else "")


def _variant(architecture: Architecture) -> str:
    return " without class token" if ("class_token", False) in architecture.options else ""


# --- PyTorch ------------------------------------------------------------------------------------------------------


def build(architecture: Architecture) -> Any:
    """The network in eval mode: seeded weights, and statistics and scales that keep activations alive."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    library, name = architecture.name.split("/")
    options = dict(architecture.options) | {"num_classes": CLASSES}
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, **options)
    else:
        from torchvision import models

        if name.startswith("vgg"):
            options["init_weights"] = False
        make = attrgetter(name)(models)
        model = make(**options) if name == "VisionTransformer" else make(weights=None, **options)
        if name.startswith("vgg"):  # 25,088 x 4,096 weights say nothing about layouts
            model.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512 * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim >= 2 and parameter.abs().max() < 1e-3:
                parameter.normal_(0, 0.3)
            elif parameter.abs().max() < 1e-3 and "bias" not in path:  # layer scales start at 1e-6, residual ones at 0
                parameter.uniform_(0.3, 0.7)
            elif parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == CLASSES:
                module.weight.normal_(0, module.in_features**-0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    # pytorch-grad-cam reads the activation after a ReLU in place and the gradient before it: DenseNet
    nn.functional.relu = lambda x, inplace=False: torch.relu(x)
    for norm in norms:
        norm.momentum = None
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        model(torch.randn(architecture.calibration, 3, *architecture.size))
    return model.eval()


def module_at(model: Any, path: str) -> Any:
    for part in path.split("."):
        children = list(model.named_children())
        model = children[int(part)][1] if part.startswith("-") else getattr(model, part)
    return model


def to_map(architecture: Architecture) -> Callable[[Any], Any]:
    """From the layer's output to (N, K, h, w), as pytorch-grad-cam's reshape_transform."""
    if architecture.lies in ("nchw", "ncdhw"):
        return lambda a: a
    if architecture.lies in ("nhwc", "ndhwc"):
        return lambda a: a.movedim(-1, 1)
    prefix, stride = map(int, architecture.lies.removeprefix("tokens:").split("/"))
    h, w = (-(-side // stride) for side in architecture.size)
    return lambda a: a[:, prefix:].reshape(len(a), h, w, -1).permute(0, 3, 1, 2)


def export(architecture: Architecture, folder: Path) -> None:
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.set_num_threads(1)
    model = build(architecture)
    torch.manual_seed(1)
    x = torch.randn(1, 3, *architecture.size)
    layer, transform = module_at(model, architecture.layer), to_map(architecture)
    traces: dict[str, Any] = {}
    held: dict[str, Any] = {}

    def remember(path: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim >= 3:
                flat = output.reshape(-1)
                where = np.random.default_rng(output.numel()).integers(0, output.numel(), SAMPLES)
                traces[path] = {"shape": list(output.shape), "values": flat[torch.from_numpy(where)].tolist()}

        return hook

    def hold(_module: Any, _inputs: Any, output: Any) -> None:
        held["A"] = output

    handles = [m.register_forward_hook(remember(p)) for p, m in model.named_modules() if p]
    handles.append(layer.register_forward_hook(hold))
    with torch.no_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    A = transform(held["A"].detach())

    def peer(module: Any, target: Any, x: Any, index: int) -> np.ndarray:
        with GradCAM(module, [target], transform) as cam:
            if len(architecture.size) == 2:
                return cam(x, [ClassifierOutputTarget(index)])[0]
            # It enlarges volumes by cubic splines: its map before that, scaled.
            cam.activations_and_grads(x)[0, index].backward()
            held = cam.activations_and_grads
            acts, grads = (t[0].numpy() for t in (held.activations, held.gradients))
            raw = np.maximum(cam.get_cam_image(x, target, [ClassifierOutputTarget(index)], acts, grads)[0], 0)
            return (raw - raw.min()) / (1e-7 + np.ptp(raw))

    tried = logits[0].argsort(descending=True)[:8].tolist()
    maps = ((index, peer(model, layer, x, index)) for index in tried)
    index, values = next((pair for pair in maps if pair[1].max() > 0), (tried[0], np.zeros(architecture.size)))
    try:
        double = build(architecture).double()
        noise = float(np.abs(peer(double, module_at(double, architecture.layer), x.double(), index) - values).max())
    except RuntimeError:
        noise = None
    arrays = {"x": x.numpy(), "logits": logits.numpy(), "A": A.numpy(), "values": values}
    np.savez(folder / f"{stem(architecture)}.npz", **arrays)
    facts: dict[str, Any] = {"class": index, "noise": noise, "traces": traces, "exports": {}}
    facts["spread"] = float(A.std())
    pair = torch.cat([x, torch.randn(x.shape)])
    for exporter in EXPORTS:
        file = folder / f"{stem(architecture)}.{exporter}.onnx"
        why = []
        for batch, opset, fused in _attempts(architecture, exporter):
            try:
                if not fused:
                    unfused = _unfused(architecture)
                _to_onnx(model if fused else unfused, x if batch == "1" else pair, file, exporter, opset, batch)
            except Exception as error:  # whatever an exporter raises is a row of the table
                why.append(_cause(error))
                continue
            facts["exports"][exporter] = {"file": file.name, "batch": batch, "opset": opset, "fused": fused, "why": why}
            break
        else:
            facts["exports"][exporter] = {"file": None, "batch": None, "opset": EXPORTS[exporter], "why": why}
    (folder / f"{stem(architecture)}.json").write_text(json.dumps(facts))


def _attempts(architecture: Architecture, exporter: str) -> Iterator[tuple[str, int, bool]]:
    """Batch, opset and whether attention is fused, to be tried in this order."""
    opset = EXPORTS[exporter]
    yield from (("N", opset, True), ("1", opset, True))
    if architecture.library == "timm":
        yield from (("N", opset, False), ("1", opset, False))
    if opset < 18:
        yield from (("N", 18, True), ("1", 18, True))


def _unfused(architecture: Architecture) -> Any:
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    try:
        return build(architecture)
    finally:
        set_fused_attn(True)


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"


def _to_onnx(model: Any, x: Any, file: Path, exporter: str, opset: int, batch: str) -> None:
    import torch

    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"], "opset_version": opset}
    if batch == "N" and exporter == "dynamo":
        options["dynamic_shapes"] = ({0: torch.export.Dim("N")},)
    elif batch == "N":
        options["dynamic_axes"] = {"x": {0: "N"}, "logits": {0: "N"}}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(model, (x,), file, dynamo=exporter == "dynamo", external_data=False, **options)


# --- onnxcam ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One export: what onnxcam chose, and how far its map is from pytorch-grad-cam's."""

    name: str
    exporter: str
    opset: int
    batch: str
    nodes: int
    automatic: str
    recommended: str
    grid: str
    layout: str
    same: bool
    difference: float | None
    noise: float | None
    milliseconds: float
    remark: str


def compare(architecture: Architecture, exporter: str, folder: Path) -> Row:
    import onnxruntime

    from onnxcam import Explainer
    from onnxcam.errors import OnnxCamError
    from onnxcam.explained import open_graph, plan, rewrite
    from onnxcam.graph.head import classifier_head
    from onnxcam.graph.layers import Layers
    from onnxcam.graph.read import read

    facts = json.loads((folder / f"{stem(architecture)}.json").read_text())
    found = facts["exports"][exporter]
    fixed: dict[str, Any] = {
        "name": architecture.name + _variant(architecture),
        "exporter": exporter,
        "opset": found.get("opset", EXPORTS[exporter]),
    }
    fixed |= {"batch": found["batch"] or "", "recommended": architecture.layer, "noise": facts["noise"]}
    nothing: dict[str, Any] = {"nodes": 0, "automatic": "", "grid": "", "layout": "", "same": False, "difference": None}
    nothing["milliseconds"] = 0.0
    if found["file"] is None:
        causes = dict.fromkeys(map(_plain, found["why"]))
        return Row(**fixed, **nothing, remark=f"the exporter fails: {', then '.join(causes)}")
    file = folder / found["file"]
    with np.load(folder / f"{stem(architecture)}.npz") as stored:
        arrays = dict(stored)
    arrays["A"] = in_plane(arrays["A"])
    try:
        started = time.process_time()  # other work on the machine does not count
        model = rewrite(file)
        milliseconds = 1000 * (time.process_time() - started)
        source = read(file)
        graph, image, _ = open_graph(source)
        (layer,) = plan(graph, image).layers
        layers = Layers(graph, image.name, image.layout, classifier_head(graph).logits)
    except OnnxCamError as error:
        return Row(**fixed, **nothing, remark=error.message)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {image.name: arrays["x"], "class_index": np.asarray([facts["class"]])}
    A, logits = session.run(["onnxcam_activations", "onnxcam_logits"], feeds)
    remark = ""
    if found["why"]:
        how = "at opset 18" if found.get("fused", True) else "with `TIMM_FUSED_ATTN=0`"
        changed = found.get("fused", True) is False or found.get("opset", 0) > EXPORTS[exporter]
        remark += f"exported {how}, else {_plain(found['why'][0])}; " if changed else ""
    remark += "" if np.abs(logits - arrays["logits"]).max() < 1e-3 * np.abs(logits).max() else "logits differ; "
    scale = float(np.abs(arrays["A"]).max())
    same = arrays["A"].shape == A.shape and float(np.abs(A - arrays["A"]).max()) < CLOSE * scale
    module = module_of(A, layer.layout, facts["traces"])
    at: str | None = layer.name
    if not same:
        at = value_equal_to(arrays["A"], layers.candidates, graph, {image.name: arrays["x"]})
    difference = None
    if at is not None:
        (explanation,) = Explainer(file, layer=at, threads=1).explain_tensor(arrays["x"], facts["class"])
        values = explanation.values
        if values.ndim == 3:
            low = np.maximum(explanation.raw, 0)
            values = (low - low.min()) / (1e-7 + np.ptp(low))
        difference = float(np.abs(values - arrays["values"]).max())
        if arrays["values"].max() == 0:
            remark += "the peer's map is empty; "
    elif not same:
        remark += "the graph has no layer equal to the recommended one; "
    lies = layer.layout
    return Row(
        **fixed,
        nodes=len(graph.nodes),
        automatic=architecture.layer if same else (module or f"{layer.name} (no module's output)"),
        grid="x".join(map(str, lies.shape)),
        layout=lies.kind + (f", {lies.prefix} first" if lies.prefix else ""),
        same=same,
        difference=difference,
        milliseconds=milliseconds,
        remark=remark.removesuffix("; "),
    )


def _plain(message: str) -> str:
    """A message without terminal colours, up to its first sentence."""
    return re.sub(r"\x1b\[\d+m", "", message).partition(". ")[0].partition(" Next steps")[0].rstrip(". ")


def in_plane(A: np.ndarray) -> np.ndarray:
    """A volume's activations (N, K, d, h, w) as (N, K, d h, w)."""
    return A.reshape(*A.shape[:2], -1, A.shape[-1])


def value_equal_to(A: np.ndarray, candidates: Sequence[Any], graph: Any, feeds: dict[str, np.ndarray]) -> str | None:
    """The layer that holds the same numbers as A (N, K, h, w); None where the exporter left none."""
    import onnx
    import onnxruntime

    _, k, *grid = A.shape
    alike = [c for c in candidates if c.channels == k and c.grid == tuple(grid)]
    exposed = graph.complete(graph.model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=c.name) for c in alike)
    if not alike:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for candidate, value in zip(alike, session.run(None, feeds), strict=True):
        lies = candidate.layout
        if lies.kind == "tokens":
            value = value[:, lies.prefix :].reshape(len(value), *lies.grid, k)
        turned = in_plane(value if lies.is_map else np.moveaxis(value, -1, 1))
        if np.abs(turned - A).max() < CLOSE * np.abs(A).max():
            return str(candidate.name)
    return None


def module_of(A: np.ndarray, layout: Any, traces: dict[str, Any]) -> str | None:
    """The first module whose output holds the same numbers as A (N, K, h, w), in whatever order of axes."""
    n, k, h, w = A.shape
    orders = {
        (n, k, h, w): A,
        (n, h, w, k): A.transpose(0, 2, 3, 1),
        (n, h * w, k): A.transpose(0, 2, 3, 1),
        (n, k, h * w): A,
    }
    for path, trace in traces.items():
        shape = tuple(trace["shape"])
        prefix = shape[1] - h * w if len(shape) == 3 and shape[2] == k else 0
        wanted = np.asarray(trace["values"])
        where = np.random.default_rng(int(np.prod(shape))).integers(0, int(np.prod(shape)), SAMPLES)
        if shape in orders:
            got = orders[shape].reshape(-1)[where]
        elif 0 < prefix <= 16 and len(shape) == 3:
            token, channel = where // k % shape[1], where % k
            keep = token >= prefix
            got, wanted = orders[(n, h * w, k)].reshape(-1, k)[token[keep] - prefix, channel[keep]], wanted[keep]
        else:
            continue
        if len(got) and np.abs(got - wanted).max() < CLOSE * float(np.abs(A).max()):
            return path
    return None


# --- the table ----------------------------------------------------------------------------------------------------

HEADER = """# Architectures

{architectures} networks of torchvision and timm, exported by both PyTorch exporters ({opsets}), against
pytorch-grad-cam on the same seeded random weights: which layer does onnxcam choose from the ONNX graph alone, and is
its Grad-CAM map there the same? Neither PyTorch nor timm is needed to use onnxcam; to make this table again (about
an hour on one core, 9 GB of files):

    pip install torch torchvision timm grad-cam onnxscript onnxcam
    python tests/parity/architectures.py export DIRECTORY
    python tests/parity/architectures.py compare DIRECTORY --table docs/architectures.md

* **Automatic layer**: the PyTorch module whose output holds the same numbers as the layer that onnxcam chose; its grid
  and how it lies there (`nchw`, `nhwc`, or `tokens` with so many class, distillation and register tokens first). {same}
  of the {rows} files get the layer that pytorch-grad-cam's README recommends for the family, or its analogue: the last
  map of a convolutional network, the first norm of the last block of a transformer, else the last stage. Where it is
  another, the recommended one is named, and the remark says why.
* **Difference**: the largest between our Grad-CAM map and pytorch-grad-cam's at the recommended layer, both in [0, 1].
  {close} of {compared} are within 1e-4. Of volumes (`video`) before they are enlarged, which it does by cubic splines
  and onnxcam linearly. **Noise**: how far pytorch-grad-cam's maps in float32 and float64 are apart.
* **Rewriting**: processor time, ms. Files below opset 18 are lifted, and verified by running both versions.
* What an exporter refuses is in the remarks. Where timm's fused attention is the reason, its own switch helps
  (`TIMM_FUSED_ATTN=0`). {failed}

"""
# Why the layer is another one than recommended, or nothing could be compared.
REASONS = {
    "squeezenet": "its classifier is a convolution: the class maps are the last map",
    "densenet": "the ReLU behind `features` is the last map, the output of no module",
    "swin_v2": "norms follow the mixing; the final norm's output is the last map",
    "swinv2": "norms follow the mixing; the final norm's output is the last map",
    "focalnet": "the final norm's output is the last map",
    "coatnet": "the final norm's output is the last map",
    "efficientformerv2": "the final norm's output is the last map",
    "maxxvit": "the first norm of the last attention, as in Swin",
    "gmlp": "the norm in the gate is the last before tokens mix",
}


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| architecture | exporter | nodes | automatic layer | grid | layout | recommended, if another "
        "| difference | noise | rewriting, ms | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        difference = "" if r.difference is None else f"{r.difference:.1e}"
        exporter = f"{r.exporter} {r.opset}" + (", batch 1" if r.batch == "1" else "")
        cells = [r.name, exporter, str(r.nodes or ""), f"`{r.automatic}`" if r.automatic else "", r.grid, r.layout]
        noise = "" if r.noise is None or r.difference is None else f"{r.noise:.0e}"
        cells += [f"`{r.recommended}`" if r.nodes and not r.same else "", difference, noise]
        reason = next((why for part, why in REASONS.items() if part in r.name), "") if r.nodes and not r.same else ""
        remark = "; ".join(text for text in (reason, r.remark) if text)
        cells += [f"{r.milliseconds:.0f}" if r.nodes else "", remark]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def document(rows: Sequence[Row]) -> str:
    made = [r for r in rows if r.nodes]
    missing = [f"`{r.name}` by the {r.exporter} exporter" for r in rows if not r.nodes]
    compared = [r.difference for r in made if r.difference is not None]
    return HEADER.format(
        architectures=len({r.name for r in rows}),
        opsets=", ".join(f"{exporter} opset {opset}" for exporter, opset in EXPORTS.items()),
        rows=len(made),
        same=sum(r.same for r in made),
        close=sum(d <= TOLERANCE for d in compared),
        compared=len(compared),
        failed=f"No file at all: {', '.join(missing)}." if missing else "",
    ) + table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "compare"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", help="parts of names (default: all)")
    parser.add_argument("--preload", type=Path, help="a module to import before torchvision (for a CPU-only PyTorch)")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--table", type=Path, help="where to write the document, of all that was ever compared")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    chosen = [a for a in ARCHITECTURES if not arguments.names or any(n in a.name for n in arguments.names)]
    if arguments.preload:
        import importlib.util

        spec = importlib.util.spec_from_file_location("preload", arguments.preload)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for architecture in chosen:
        facts, rows = (arguments.directory / f"{stem(architecture)}.{kind}" for kind in ("json", "rows"))
        if (facts if arguments.step == "export" else rows).exists() and not arguments.again:
            continue
        if arguments.step == "export":
            started = time.perf_counter()
            try:
                export(architecture, arguments.directory)
                print(f"{stem(architecture)}: {time.perf_counter() - started:.0f} s", flush=True)
            except Exception:
                print(f"{stem(architecture)}: FAILED\n{traceback.format_exc(limit=-3)}", flush=True)
            gc.collect()
        elif facts.exists():
            compared = [compare(architecture, exporter, arguments.directory) for exporter in EXPORTS]
            rows.write_text(json.dumps([asdict(row) for row in compared]))
            print(*table(compared).splitlines()[2:], sep="\n", flush=True)
    if arguments.table:
        stored = [arguments.directory / f"{stem(a)}.rows" for a in ARCHITECTURES]
        arguments.table.write_text(
            document([Row(**row) for path in stored if path.exists() for row in json.loads(path.read_text())])
        )


if __name__ == "__main__":
    main()
