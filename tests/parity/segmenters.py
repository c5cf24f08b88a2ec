"""torchvision's segmenters, exported with their dict of outputs, against pytorch-grad-cam.

    python segmenters.py export DIRECTORY [--preload MODULE.py]   needs torch, torchvision and grad-cam
    python segmenters.py compare DIRECTORY                        needs onnxcam

Seeded random weights. `export` stores pytorch-grad-cam's maps (its SemanticSegmentationTarget) of one class on the
pixels for which it is predicted, and on half of the picture. Not part of the test run.
"""

import argparse
import importlib.util
import os
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np

SIZE = (96, 128)
CLASSES = 7
# Name, and the module whose output is explained: the end of the backbone.
NETWORKS = (("lraspp_mobilenet_v3_large", "backbone.16"), ("deeplabv3_mobilenet_v3_large", "backbone.16"),
            ("fcn_resnet50", "backbone.layer4"))  # fmt: skip
METHODS = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "gradcam++": "GradCAMPlusPlus", "layercam": "LayerCAM",
           "xgradcam": "XGradCAM", "gradcamelementwise": "GradCAMElementWise"}  # fmt: skip
EXPORTS = {"legacy": 17, "dynamo": 20}


def export(folder: Path) -> None:
    """Write a file per network and exporter, and an .npz per network."""
    import pytorch_grad_cam
    import torch
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
    from torchvision.models import segmentation

    warnings.filterwarnings("ignore")

    class Out(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)["out"]

    for name, layer in NETWORKS:
        torch.manual_seed(0)
        aux = {} if name.startswith("lraspp") else {"aux_loss": True}
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **aux)
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None
        x = torch.rand(1, 3, *SIZE) * 2 - 1
        with torch.no_grad():
            model.train()(torch.rand(4, 3, *SIZE) * 2 - 1)
            out = model.eval()(x)["out"][0]
        modules = dict(model.named_modules())
        kept: list[torch.Tensor] = []
        modules[layer].register_forward_hook(lambda _m, _i, y, kept=kept: kept.append(y.detach()))
        winners = out.argmax(0).numpy()
        c = int(np.bincount(winners.ravel(), minlength=CLASSES)[1:].argmax()) + 1
        half = np.zeros(SIZE, np.float32)
        half[:, : SIZE[1] // 2] = 1
        maps = {}
        for ours, theirs in METHODS.items():
            with getattr(pytorch_grad_cam, theirs)(Out(model), [modules[layer]]) as cam:
                for where, mask in (("predicted", (winners == c).astype(np.float32)), ("half", half)):
                    maps[f"{ours} {where}"] = cam(x, [SemanticSegmentationTarget(c, mask)])[0]
        np.savez(folder / f"{name}.npz", x=x.numpy(), c=c, half=half, activations=kept[0].numpy(), **maps)
        for exporter, opset in EXPORTS.items():
            path = folder / f"{name}.{exporter}.onnx"
            torch.onnx.export(model, (x,), path, dynamo=exporter == "dynamo", opset_version=opset, external_data=False)


def compare(folder: Path) -> None:
    """Print per file the layer found, the automatic one and the largest difference per method and region.

    Beside it how much a picture that is brighter by a millionth changes the map: as far as float32 decides on which
    side of a kink it is.
    """
    import onnxruntime

    import onnxcam
    from onnxcam.explained import open_graph
    from onnxcam.graph.build import Builder, tensor_info
    from onnxcam.graph.layers import Layers
    from onnxcam.graph.read import read
    from onnxcam.targets import Segmentation

    for name, _ in NETWORKS:
        stored = np.load(folder / f"{name}.npz")
        x, c = stored["x"], int(stored["c"])
        for exporter in EXPORTS:
            path = folder / f"{name}.{exporter}.onnx"
            graph, image, _ = open_graph(read(path))
            candidates = Layers(graph, image.name, image.layout, graph.outputs[0]).candidates
            names = [k.name for k in candidates if k.grid == stored["activations"].shape[2:]]
            model = Builder(graph).model([tensor_info(v, graph.dtype(v), None) for v in names])
            session = onnxruntime.InferenceSession(model.SerializeToString())
            values = dict(zip(names, session.run(names, {image.name: x}), strict=True))
            same = {n: v for n, v in values.items() if v.shape == stored["activations"].shape}
            layer = min(same, key=lambda n: float(np.abs(same[n] - stored["activations"]).max()))
            print(f"{path.name}: {', '.join(graph.outputs)}; layer {layer}", end="")
            print(f"; automatic {onnxcam.Explainer(path).layer}")
            for method in METHODS:
                made = onnxcam.Explainer(path, method=method, layer=layer)
                asked = {"predicted": Segmentation(c), "half": Segmentation(c, mask=stored["half"])}
                told = []
                for where, target in asked.items():
                    found, brighter = (
                        made.explain_tensor(picture, target)[0].values for picture in (x, x * np.float32(1 + 1e-6))
                    )
                    gaps = [float(np.abs(found - other).max()) for other in (stored[f"{method} {where}"], brighter)]
                    told.append(f"{where} {gaps[0]:.1e} (brighter {gaps[1]:.1e})")
                print(f"  {method:20s}", "  ".join(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("export", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preload", type=Path, help="a module to import first")
    arguments = parser.parse_args()
    if arguments.preload is not None:
        spec = importlib.util.spec_from_file_location("preload", arguments.preload)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (export if arguments.what == "export" else compare)(arguments.folder)
