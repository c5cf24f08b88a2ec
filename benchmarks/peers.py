"""pytorch-grad-cam and PyTorch on the same network, rebuilt from the same ONNX graph with the same weights.

The networks are the exported ones with BatchNormalization folded in, so PyTorch runs fewer operators than it would on
the original modules: the comparison errs in its favour.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from benchmarks.gradients import TARGETS, saliency
from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row, session_options
from onnxcam import Explainer, OnnxCamError

PAUSE = 0.02  # PyTorch's OpenMP threads spin for some milliseconds after a call.


def peers(settings: Settings) -> Rows:
    try:
        import torch
    except ImportError:
        yield Row("peers", "PyTorch", note="missing: pip install torch grad-cam")
        return
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except (ImportError, RuntimeError) as error:
        yield Row("peers", "pytorch-grad-cam", note=f"missing: pip install grad-cam ({error})")
        GradCAM = None  # type: ignore[assignment,misc]
    torch.set_num_threads(settings.threads)
    versions = f"torch {torch.__version__}"
    for name in list(NETWORKS)[: 2 if settings.quick else None]:
        model = NETWORKS[name]()
        try:
            explainer = Explainer(model, session_options=session_options(settings))
        except OnnxCamError as error:
            yield Row("peers", name, note=f"not explained: {error.message}")
            continue
        network = as_torch(model)
        for batch in (1,) if settings.quick else (1, 8):
            x = pictures(batch)
            image = torch.from_numpy(x)
            if GradCAM is not None:
                grid = explainer.explain_tensor(x[:1])[0].raw.shape
                reshape = partial(as_planes, grid=grid) if name.startswith("ViT") else None
                cam = GradCAM(network, [network.modules_by_value[explainer.layer]], reshape_transform=reshape)
                indices = [e.class_index for e in explainer.explain_tensor(x)]
                targets = [ClassifierOutputTarget(i) for i in indices]

                theirs = partial(cam, image, targets)
                pairs = zip(explainer.explain_tensor(x, indices), theirs(), strict=True)
                gap = max(float(np.abs(e.values - t).max()) for e, t in pairs)
                ours = partial(explainer.explain_tensor, x, indices)
                yield ratio_row("peers", f"Grad-CAM, {name}, batch {batch}", ours, "pytorch-grad-cam", theirs, settings,
                                target=3.0, better="higher", pause=PAUSE,
                                note=f"largest difference of the maps {gap:.0e}; {versions}")  # fmt: skip
                cam.activations_and_grads.release()
        if name not in TARGETS:
            continue
        salient = saliency(model, settings)
        frozen = as_torch(model)
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)

        for batch in (1,) if settings.quick else (1, 16):
            x = pictures(batch)

            def backward(x: Any = x, frozen: Any = frozen) -> Any:
                image = torch.from_numpy(x).requires_grad_()
                (gradient,) = torch.autograd.grad(frozen(image).max(1).values.sum(), image)
                return gradient.numpy()

            mine = np.stack([e.raw for e in salient.explain_tensor(x)])
            other = np.abs(backward()).max(1)
            gap = float(np.abs(mine - other).max() / other.max())
            ours = partial(salient.explain_tensor, x)
            yield ratio_row("peers", f"saliency, {name}, batch {batch}", ours, "PyTorch, weights frozen", backward,
                            settings, target=1.7, better="higher", pause=PAUSE,
                            note=f"largest relative difference {gap:.0e}; {versions}")  # fmt: skip


def as_planes(tokens: Any, grid: tuple[int, int]) -> Any:
    """(N, 1 + h w, K) to (N, K, h, w): the class token left out."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def as_torch(model: ModelProto) -> Any:
    """A torch module that runs the graph node by node, every node a submodule that can be hooked."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Node(nn.Module):
        def __init__(self, call: Callable[..., Any]) -> None:
            super().__init__()
            self.call = call

        def forward(self, *inputs: Any) -> Any:
            return self.call(*inputs)

    def conv(a: dict[str, Any]) -> Callable[..., Any]:
        pads = a.get("pads", [0] * 4)
        return lambda x, w, b: functional.conv2d(
            x, w, b, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1)
        )

    calls: dict[str, Callable[[dict[str, Any]], Callable[..., Any]]] = {
        "Conv": conv,
        "Relu": lambda a: functional.relu,
        "Clip": lambda a: functional.relu6,
        "Sigmoid": lambda a: torch.sigmoid,
        "Gelu": lambda a: functional.gelu,
        "Add": lambda a: operator.add,
        "Mul": lambda a: operator.mul,
        "MatMul": lambda a: operator.matmul,
        "Identity": lambda a: lambda x: x,
        "Flatten": lambda a: lambda x: x.flatten(1),
        "Transpose": lambda a: lambda x: x.permute(a["perm"]),
        "GlobalAveragePool": lambda a: lambda x: x.mean((2, 3), keepdim=True),
        "MaxPool": lambda a: lambda x: functional.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2]),
        "Gemm": lambda a: lambda x, w, b: functional.linear(x, w, b),
        "Softmax": lambda a: lambda x: functional.softmax(x, a["axis"]),
        "Concat": lambda a: lambda *parts: torch.cat(parts, a["axis"]),
        "Shape": lambda a: lambda x: torch.tensor(x.shape),
        "Expand": lambda a: lambda x, sizes: x.expand(sizes.tolist()),
        "Reshape": lambda a: lambda x, sizes: x.reshape([n or x.shape[i] for i, n in enumerate(sizes.tolist())]),
        "Gather": lambda a: (
            lambda x, i: x.index_select(a["axis"], i.flatten()).reshape(
                *x.shape[: a["axis"]], *i.shape, *x.shape[a["axis"] + 1 :]
            )
        ),
        "LayerNormalization": lambda a: lambda x, w, b: functional.layer_norm(x, w.shape, w, b, a["epsilon"]),
    }

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
            self.sizes = {name: t for name, t in tensors.items() if not t.is_floating_point()}
            self.weights = nn.ParameterDict(
                {name: nn.Parameter(t) for name, t in tensors.items() if t.is_floating_point()}
            )
            self.steps = nn.ModuleList()
            self.modules_by_value: dict[str, nn.Module] = {}
            for node in model.graph.node:
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                step = Node(calls[node.op_type](attributes))
                self.steps.append(step)
                self.modules_by_value[node.output[0]] = step
            self.wiring = [
                (list(n.input[:1] if n.op_type == "Clip" else n.input), n.output[0]) for n in model.graph.node
            ]

        def forward(self, image: Any) -> Any:
            values = {"image": image, **self.sizes, **dict(self.weights.items())}
            for step, (inputs, output) in zip(self.steps, self.wiring, strict=True):
                values[output] = step(*(values[i] for i in inputs))
            return values["logits"]

    return Network().eval()
