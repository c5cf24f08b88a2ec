"""Writes goldens_more/families.npz and nhwc.onnx: needs PyTorch and pytorch-grad-cam.

    python make_goldens_families.py [--preload MODULE.py]

What `goldens` lacks of one network per family: the map of the hybrid network (convolutions, then a transformer) at its
transformer's first norm, and a network that lies as TensorFlow exports do. That one is written by hand from the
weights of its PyTorch twin: picture and maps with channels last, a transpose on both sides of every convolution,
padding `SAME` (one more below and right at stride 2), the mean over axes 1 and 2, a Softmax at the end.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from make_goldens import reshape_transform
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
    onnx.save(channels_last(twin), OUT / "nhwc.onnx")
    for name, array in arrays.items():
        print(name, array.shape, array.dtype, float(array.min()), float(array.max()))


if __name__ == "__main__":
    main()
