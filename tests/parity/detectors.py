"""torchvision's SSDlite, with NonMaxSuppression inside, and Ultralytics' YOLOs against PyTorch's own gradient.

    python detectors.py export DIRECTORY [--preload MODULE.py]   needs torch, torchvision, ultralytics
    python detectors.py compare DIRECTORY                        needs onnxcam

Seeded random weights. `export` stores the boxes and scores of one picture, and of the three best the map sum_k G_k A_k
at a layer, G being autograd's gradient of the box's score, of a YOLO that of its logit. Not part of the test run.
"""

import argparse
import importlib.util
import warnings
from pathlib import Path

import numpy as np

# Name, side of the square picture, the module whose output is explained, and what it is called in the file.
NETWORKS = (
    ("ssdlite320_mobilenet_v3_large", 320, "backbone.features.0.12", "/backbone/features.0/features.0.12/Add_output_0"),
)
YOLOS = ("yolov5n", "yolov8n", "yolov9t", "yolo11n", "yolo26n")
YOLO_LAYER = 4  # of stride 8, before the backbone goes on: what onnxcam chooses
BEST = 3


def export(folder: Path) -> None:
    """Write a file and an .npz per network."""
    import torch
    from torchvision.models import detection

    warnings.filterwarnings("ignore")
    for name, side, layer, _ in NETWORKS:
        torch.manual_seed(0)
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5, score_thresh=0.05)
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                module.weight.data *= 0.3 if "classification_head" in path else 1
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # a plain mean of the batches seen
        with torch.no_grad():
            model.train().backbone(torch.rand(4, 3, side, side) * 2 - 1)
        kept: list[torch.Tensor] = []
        dict(model.named_modules())[layer].register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
        x = torch.tensor(pixels).permute(2, 0, 1).float()[None] / 255
        found = model.eval()(x)[0]
        gradients = [torch.autograd.grad(s, kept[0], retain_graph=True)[0] for s in found["scores"][:BEST]]
        maps = np.stack([(g * kept[0]).sum(1)[0].detach().numpy() for g in gradients])
        boxes, scores = (found[k].detach().numpy()[:BEST] for k in ("boxes", "scores"))
        np.savez(folder / f"{name}.npz", pixels=pixels, maps=maps, boxes=boxes, scores=scores)
        torch.onnx.export(model, (x,), folder / f"{name}.onnx", dynamo=False, opset_version=17)


def export_yolos(folder: Path) -> None:
    """The same of Ultralytics' networks."""
    import torch
    from ultralytics import YOLO

    side = 160
    for name in YOLOS:
        torch.manual_seed(0)
        yolo = YOLO(f"{name}.yaml")
        network = yolo.model
        for path, module in network.named_modules():
            if isinstance(module, torch.nn.Conv2d) and "dfl" not in path:
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        for head in network.model[-1].cv3:
            head[-1].weight.data *= 0.05
            head[-1].bias.data *= 0
        with torch.no_grad():
            network.train()(torch.rand(4, 3, side, side))
        kept: list[torch.Tensor] = []
        network.model[YOLO_LAYER].register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
        found = network.eval()(torch.tensor(pixels).permute(2, 0, 1).float()[None] / 255)
        found = (found[0] if isinstance(found, list | tuple) else found)[0].T
        best = found[:, 4:].max(1).values.argsort(descending=True)[:BEST]
        scores = [found[a, 4:].max() for a in best]
        gradients = [torch.autograd.grad(torch.logit(s.double()), kept[0], retain_graph=True)[0] for s in scores]
        maps = np.stack([(g * kept[0]).sum(1)[0].detach().numpy() for g in gradients])
        x, y, w, h = found[best, :4].detach().numpy().T
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        np.savez(folder / f"{name}.npz", pixels=pixels, maps=maps, boxes=boxes, scores=[float(s) for s in scores])
        written = yolo.export(format="onnx", imgsz=side, simplify=False, opset=17, verbose=False)
        Path(written).rename(folder / f"{name}.onnx")


def compare(folder: Path) -> None:
    """Print the largest differences per network; of each box's map relative to its largest value, and beside it how
    much a picture that is brighter by a millionth changes it: as far as float32 decides on which side of a kink it is.
    """
    from onnxcam import Detector

    for name, layer in (*((name, layer) for name, _, _, layer in NETWORKS), *((name, None) for name in YOLOS)):
        stored = np.load(folder / f"{name}.npz")
        settings = {"layer": layer, "method": "hirescam", "threshold": 0.0, "max_boxes": BEST, "iou": 1.0}
        detector = Detector(folder / f"{name}.onnx", **settings)
        scale = {"scale": (1 + 1e-6) / 255}
        brighter = Detector(folder / f"{name}.onnx", preprocess=scale, **settings).explain_boxes(stored["pixels"])
        explained = detector.explain_boxes(stored["pixels"])
        boxes = np.array([e.boxes[0].xyxy for e in explained])
        scores = np.array([e.boxes[0].score for e in explained])
        print(
            f"{name} ({detector.kind}): scores {np.abs(scores - stored['scores']).max():.1e}, "
            f"boxes {np.abs(boxes - stored['boxes']).max():.1e} pixels"
        )
        for e, other, peer in zip(explained, brighter, stored["maps"], strict=True):
            differences = [float(np.abs(e.raw - m).max() / np.abs(peer).max()) for m in (peer, other.raw)]
            print(f"  map of box {e.boxes[0].index}: {differences[0]:.1e} (a millionth brighter: {differences[1]:.1e})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("export", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preload", type=Path, help="a Python file to run before torchvision is imported")
    arguments = parser.parse_args()
    if arguments.preload is not None:
        spec = importlib.util.spec_from_file_location("preload", arguments.preload)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    arguments.folder.mkdir(exist_ok=True)
    if arguments.what == "export":
        export(arguments.folder)
        export_yolos(arguments.folder)
    else:
        compare(arguments.folder)
