"""Writes goldens_more/families.npz, sides.npz and the networks beside them: needs PyTorch and pytorch-grad-cam.

    python make_goldens_families.py [--preload MODULE.py]

What `goldens` lacks of one network per family: the map of the hybrid network (convolutions, then a transformer) at its
transformer's first norm, and a network that lies as TensorFlow exports do. That one is written by hand from the
weights of its PyTorch twin: picture and maps with channels last, a transpose on both sides of every convolution,
padding `SAME` (one more below and right at stride 2), the mean over axes 1 and 2, a Softmax at the end.

Signals and volumes, which pytorch-grad-cam does not take or enlarges by cubic splines: `sides.npz` holds the
activations at the recommended layer and Grad-CAM's sum over them before the ReLU, by autograd in float64; one file per
exporter.
"""

import argparse
import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from make_goldens import reshape_transform, strip
from networks import build, picture
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

OUT = Path(__file__).parent / "goldens_more"
CLASSES = [3, 5]


class Twin(nn.Module):
    """Two strided convolutions, a residual one, global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2)
        self.conv2 = nn.Conv2d(8, 12, 3, 2)
        self.conv3 = nn.Conv2d(12, 12, 3, 1, 1)
        self.last = nn.ReLU()
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(functional.pad(x, (0, 1, 0, 1))))
        x = functional.relu6(self.conv2(functional.pad(x, (0, 1, 0, 1))))
        return self.head(self.last(x + self.conv3(x)).mean((2, 3)))


def channels_last(twin: Twin) -> onnx.ModelProto:
    """The twin as a TensorFlow converter writes it."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {"axes": np.array([1, 2]), "zero": np.float32(0), "six": np.float32(6)}

    def node(op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    def convolution(name: str, module: nn.Conv2d, value: str) -> str:
        weights[f"{name}/kernel"] = module.weight.detach().numpy()
        weights[f"{name}/bias"] = module.bias.detach().numpy()
        stride = list(module.stride)
        pads = [0, 0, 1, 1] if stride == [2, 2] else [1, 1, 1, 1]
        first = node("Transpose", f"{name}/Conv2D__before", [value], perm=[0, 3, 1, 2])
        made = node("Conv", f"{name}/Conv2D", [first, f"{name}/kernel"], strides=stride, pads=pads)
        last = node("Transpose", f"{name}/Conv2D__behind", [made], perm=[0, 2, 3, 1])
        return node("Add", f"{name}/BiasAdd", [last, f"{name}/bias"])

    a = node("Relu", "model/relu/Relu", [convolution("model/conv2d", twin.conv1, "x")])
    b = node("Clip", "model/relu6/Relu6", [convolution("model/conv2d_1", twin.conv2, a), "zero", "six"])
    c = node("Add", "model/add/add", [b, convolution("model/conv2d_2", twin.conv3, b)])
    d = node("Relu", "model/out/Relu", [c])
    weights["model/dense/kernel"] = twin.head.weight.detach().numpy().T.copy()
    weights["model/dense/bias"] = twin.head.bias.detach().numpy()
    e = node("ReduceMean", "model/pool/Mean", [d, "axes"], keepdims=0)
    f = node("Add", "model/dense/BiasAdd", [node("MatMul", "model/dense/MatMul", [e, "model/dense/kernel"]),
                                            "model/dense/bias"])  # fmt: skip
    nodes.append(helper.make_node("Softmax", [f], ["probabilities"], "model/dense/Softmax", axis=-1))
    graph = helper.make_graph(
        nodes,
        "nhwc",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 24, 36, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def peer(module: nn.Module, layer: str, x: Tensor, classes: list[int], layout: dict[str, Any]) -> np.ndarray:
    """pytorch-grad-cam's Grad-CAM (N, H, W)."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(module, [module.get_submodule(layer)], reshape_transform(layout)) as cam:
        return cam(x, [ClassifierOutputTarget(c) for c in classes])


class Signal(nn.Module):
    """Two convolutions of a signal (N, 2, 200)."""

    size = (2, 200)
    layer, prefix, sides = "last", 0, (50,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 8, 7, 2, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2))
        self.conv = nn.Conv1d(8, 12, 5, 1, 2)
        self.last = nn.ReLU()
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.conv(self.stem(x))).mean(2))


class SignalTransformer(nn.Module):
    """Patches of a signal (N, 3, 200) behind a class token."""

    size = (3, 200)
    layer, prefix, sides = "encoder.layers.1.norm1", 1, (25,)

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.place = nn.Parameter(0.3 * torch.randn(1, 26, 16))
        block = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.place
        return self.head(self.encoder(tokens)[:, 0])


class Volume(nn.Module):
    """Three convolutions of a volume (N, 2, 6, 16, 20), strided along one side after the other."""

    size = (2, 6, 16, 20)
    layer, prefix, sides = "last", 0, (3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(2, 6, 3, (1, 2, 2), 1), nn.BatchNorm3d(6), nn.ReLU())
        self.pool = nn.MaxPool3d((2, 1, 1))
        self.conv = nn.Conv3d(6, 10, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.last = nn.ReLU()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(10 * 60, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.conv(self.pool(self.stem(x)))))


def of_other_sides(make: type[nn.Module], name: str) -> dict[str, np.ndarray]:
    """Exports a network and returns x, logits, A (N, K, ...) and raw maps (N, ...) of CLASSES."""
    torch.manual_seed(1)
    module = make().eval()
    x = torch.randn(2, *make.size)
    for exporter, opset in (("legacy", 17), ("dynamo", 20)):
        options: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"], "opset_version": opset}
        dynamic = {"dynamic_shapes": ({0: torch.export.Dim("N")},), "dynamo": True}
        if exporter == "legacy":
            dynamic = {"dynamic_axes": {"x": {0: "N"}, "logits": {0: "N"}}, "dynamo": False}
        path = OUT / f"{name}.{exporter}.onnx"
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(module, (x,), path, external_data=False, **options, **dynamic)
        model = onnx.load(path)
        strip(model)
        onnx.save(model, path)
    with torch.no_grad():
        logits = module(x)
    held: list[Tensor] = []
    double = module.double()
    double.get_submodule(make.layer).register_forward_hook(lambda _m, _i, out: held.append(out))
    score = double(x.double())[torch.arange(2), CLASSES].sum()
    (g,) = torch.autograd.grad(score, held)
    a, g = (t if not make.prefix else t[:, make.prefix :].transpose(1, 2) for t in (held[0].detach(), g))
    a, g = (t.reshape(2, -1, *make.sides) for t in (a, g))
    weights = g.mean(tuple(range(2, g.ndim)), keepdim=True)
    raw = (weights * a).sum(1)
    return {"x": x.numpy(), "logits": logits.numpy(), "A": a.float().numpy(), "raw": raw.float().numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preload", type=Path, help="a module to import before torchvision (for a CPU-only PyTorch)")
    arguments = parser.parse_args()
    if arguments.preload:
        spec = importlib.util.spec_from_file_location("preload", arguments.preload)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    torch.set_num_threads(1)
    tokens = {"kind": "tokens", "class_tokens": 0, "grid": (6, 9)}
    arrays = {"hybrid": peer(build("hybrid"), "encoder.norm1", picture("hybrid"), CLASSES, tokens)}
    torch.manual_seed(0)
    twin = Twin().eval()
    x = picture("hybrid")
    arrays["nhwc"] = peer(twin, "last", x, CLASSES, {"kind": "channels_first"})
    arrays["nhwc.x"] = x.permute(0, 2, 3, 1).contiguous().numpy()
    arrays["nhwc.probabilities"] = twin(x).softmax(-1).detach().numpy()
    np.savez_compressed(OUT / "families.npz", **arrays)
    networks = {"signal": Signal, "signal_transformer": SignalTransformer, "volume": Volume}
    sides = {f"{n}.{key}": a for n, make in networks.items() for key, a in of_other_sides(make, n).items()}
    np.savez_compressed(OUT / "sides.npz", **sides)
    onnx.save(channels_last(twin), OUT / "nhwc.onnx")
    for name, array in (arrays | sides).items():
        print(name, array.shape, array.dtype, float(array.min()), float(array.max()))


if __name__ == "__main__":
    main()
