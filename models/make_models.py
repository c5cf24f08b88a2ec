"""Draws the demo pictures, trains the demo model on them, measures it and writes both. Development only: needs torch.

    python models/make_models.py --cache SCRATCH_FOLDER

Every random choice comes from SEED. The same versions on the same kind of CPU give the same files; elsewhere sums
round differently in training and the weights drift apart.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL
import torch
from onnx import numpy_helper
from PIL import Image, ImageDraw, ImageFilter
from torch import nn

SEED = 20
TRAIN, HELD_OUT = 9_000, 2_500
EPOCHS, BATCH, LEARNING_RATE = 12, 64, 4e-3
THREADS = 2
HERE = Path(__file__).resolve().parent
PREPROCESS = {
    "size": [128, 128],
    "fit": "letterbox",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "scale": 0.00392156862745098,
    "channels": "rgb",
    "layout": "nchw",
}
PICTURE_SIZES = [(320, 240), (280, 280), (240, 320)]

# --- the kinds of object: each draws itself in white on black, in a square of side CANVAS -----------------------------

CANVAS = 256
Shape = Callable[[ImageDraw.ImageDraw], None]
SHAPES: dict[str, Shape] = {}


def shape(draw: Shape) -> Shape:
    SHAPES[draw.__name__] = draw
    return draw


def polar(radius: float, degrees: float, centre: tuple[float, float] = (128, 128)) -> tuple[float, float]:
    angle = math.radians(degrees)
    return centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)


def disc(d: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int = 255) -> None:
    d.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


@shape
def arrow(d: ImageDraw.ImageDraw) -> None:
    d.polygon([(20, 104), (120, 104), (120, 40), (236, 128), (120, 216), (120, 152), (20, 152)], fill=255)


@shape
def crescent(d: ImageDraw.ImageDraw) -> None:
    disc(d, 128, 128, 100)
    disc(d, 176, 112, 84, fill=0)


@shape
def cross(d: ImageDraw.ImageDraw) -> None:
    d.rectangle((28, 98, 228, 158), fill=255)
    d.rectangle((98, 28, 158, 228), fill=255)


@shape
def flower(d: ImageDraw.ImageDraw) -> None:
    for i in range(6):
        disc(d, *polar(66, 60 * i), 37)
    disc(d, 128, 128, 60)
    disc(d, 128, 128, 27, fill=0)


@shape
def key(d: ImageDraw.ImageDraw) -> None:
    disc(d, 68, 128, 50)
    disc(d, 68, 128, 23, fill=0)
    d.rectangle((112, 114, 240, 142), fill=255)
    d.rectangle((172, 140, 194, 180), fill=255)
    d.rectangle((214, 140, 240, 190), fill=255)


@shape
def ladder(d: ImageDraw.ImageDraw) -> None:
    for x in (70, 162):
        d.rectangle((x, 16, x + 24, 240), fill=255)
    for y in (40, 92, 144, 196):
        d.rectangle((80, y, 180, y + 20), fill=255)


@shape
def ring(d: ImageDraw.ImageDraw) -> None:
    disc(d, 128, 128, 100)
    disc(d, 128, 128, 62, fill=0)


@shape
def spiral(d: ImageDraw.ImageDraw) -> None:
    for degrees in range(0, 900, 3):
        disc(d, *polar(6 + 94 * degrees / 900, degrees), 11)


@shape
def star(d: ImageDraw.ImageDraw) -> None:
    d.polygon([polar(110 if i % 2 == 0 else 46, 36 * i - 90) for i in range(10)], fill=255)


@shape
def umbrella(d: ImageDraw.ImageDraw) -> None:
    d.pieslice((20, 30, 236, 246), 180, 360, fill=255)
    for x in (56, 128, 200):
        d.ellipse((x - 36, 116, x + 36, 160), fill=0)
    d.rectangle((119, 14, 137, 210), fill=255)
    d.arc((87, 178, 137, 240), 0, 180, fill=255, width=18)


LABELS = sorted(SHAPES)


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    label: str
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of the drawn pixels; x1 and y1 exclusive


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    objects: list[Placed]


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured noise at three scales, perhaps stripes, blobs, polygons and strokes in every colour; anti-aliased."""
    W, H = 2 * width, 2 * height
    base = rng.uniform(40, 215, 3)
    layers = np.zeros((height, width, 3), np.float32) + base.astype(np.float32)
    for cells, strength in ((2, 60), (7, 35), (24, 18)):
        noise = rng.normal(0, strength * rng.uniform(0.3, 1), (cells, cells, 3)).astype(np.float32)
        for c in range(3):
            channel = Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            layers[..., c] += np.asarray(channel)
    if rng.random() < 0.5:
        angle, period, phase = rng.uniform(0, math.pi), rng.uniform(8, 50), rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + phase)
        layers += wave[..., None] * rng.uniform(-30, 30, 3).astype(np.float32)
    image = Image.fromarray(layers.clip(0, 255).astype(np.uint8)).resize((W, H), Image.Resampling.BILINEAR)
    d = ImageDraw.Draw(image)
    for _ in range(rng.integers(8, 22)):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y = rng.uniform(0, W), rng.uniform(0, H)
        length, angle = rng.uniform(0.05, 0.3) * min(W, H), rng.uniform(0, 2 * math.pi)
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        stroke = int(rng.integers(3, 17))
        match rng.integers(5):
            case 0:
                d.line((x, y, x + dx, y + dy), fill=colour, width=stroke)
            case 1:
                start = math.degrees(angle)
                d.arc((x, y, x + length, y + length), start, start + rng.uniform(40, 130), fill=colour, width=stroke)
            case 2:
                d.line((x, y, x + dx, y + dy, x + dx - dy * 0.6, y + dy + dx * 0.6), fill=colour, width=stroke)
            case 3:
                d.ellipse((x, y, x + length * rng.uniform(0.3, 1), y + length * rng.uniform(0.3, 1)), fill=colour)
            case _:
                corners = [(x + rng.uniform(-0.5, 0.5) * length, y + rng.uniform(-0.5, 0.5) * length) for _ in range(4)]
                d.polygon(corners[: rng.integers(3, 5)], fill=colour)
    return image.reduce(2).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))


def object_mask(rng: np.random.Generator, label: str, side: float) -> Image.Image:
    """The kind turned by up to 45 degrees, perhaps mirrored, cropped to its pixels, its longer side `side` pixels."""
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    SHAPES[label](ImageDraw.Draw(canvas))
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = canvas.rotate(rng.uniform(-45, 45), Image.Resampling.BICUBIC, expand=True)
    canvas = canvas.crop(canvas.getbbox())
    ratio = side / max(canvas.size)
    return canvas.resize((round(canvas.width * ratio), round(canvas.height * ratio)), Image.Resampling.BOX)


def contrasting_colour(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """A colour drawn without looking at the label, until it stands out from the pixels it will cover."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs((colour - around) @ luma) > 60:
            return colour


Corner = tuple[int, int]


def place(rng: np.random.Generator, size: tuple[int, int], mask: Image.Image, taken: list[Placed]) -> Corner | None:
    """A corner at which the mask lies inside the picture, clear of every earlier box."""
    for _ in range(50):
        x = int(rng.integers(3, size[0] - mask.width - 2))
        y = int(rng.integers(3, size[1] - mask.height - 2))
        if all(
            x >= o.box[2] + 3 or x + mask.width + 3 <= o.box[0] or y >= o.box[3] + 3 or y + mask.height + 3 <= o.box[1]
            for o in taken
        ):
            return x, y
    return None


def draw_picture(rng: np.random.Generator, size: tuple[int, int], labels: list[str]) -> Picture:
    """One object of each label on a cluttered background; an object for which no free place is found is left out."""
    pixels = np.asarray(background(rng, *size), np.float32).copy()
    objects: list[Placed] = []
    for label in labels:
        mask = object_mask(rng, label, rng.uniform(0.23, 0.4) * min(size))
        corner = place(rng, size, mask, objects)
        if corner is None:
            continue
        x, y = corner
        patch = pixels[y : y + mask.height, x : x + mask.width]
        alpha = np.asarray(mask, np.float32)[..., None] / 255
        covered = (patch * alpha).sum((0, 1)) / alpha.sum()
        shade = np.linspace(-1, 1, mask.height, dtype=np.float32)[:, None, None] * rng.uniform(-25, 25)
        patch += alpha * (contrasting_colour(rng, covered).astype(np.float32) + shade - patch)
        objects.append(Placed(label, (x, y, x + mask.width, y + mask.height)))
    pixels += rng.normal(0, rng.uniform(1, 8), pixels.shape).astype(np.float32)
    return Picture(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), objects)


def letterbox(image: Image.Image) -> tuple[np.ndarray, float, tuple[int, int]]:
    """(H,W,3) uint8 at the model's size, the scale, and where the picture's corner lies in it."""
    H, W = PREPROCESS["size"]
    scale = min(W / image.width, H / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (W - width) // 2, (H - height) // 2
    canvas = Image.new("RGB", (W, H), (114, 114, 114))
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas), scale, (left, top)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """(N,H,W,3) uint8 -> (N,3,H,W) float32, as `onnxcam.preprocess` says."""
    x = (pixels.astype(np.float32) * np.float32(PREPROCESS["scale"]) - 0.5) / 0.5
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def sample(key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The letterboxed pixels and, per class, the box in them (NaN where the class is absent)."""
    rng = np.random.default_rng(key)
    size = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    labels = [str(v) for v in rng.choice(LABELS, rng.integers(1, 4), replace=False)]
    picture = draw_picture(rng, size, labels)
    pixels, scale, (left, top) = letterbox(picture.image)
    boxes = np.full((len(LABELS), 4), np.nan, np.float32)
    for o in picture.objects:
        boxes[LABELS.index(o.label)] = np.array(o.box) * scale + (left, top, left, top)
    return pixels, boxes


def draw_set(seed: int, count: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    source = hashlib.sha256(Path(__file__).read_bytes().split(b"# --- network")[0]).hexdigest()[:12]
    file = cache / f"set-{seed}-{count}-{source}.npz"
    if not file.exists():
        with multiprocessing.Pool(2) as pool:
            pixels, boxes = zip(*pool.imap(sample, ((seed, i) for i in range(count)), chunksize=64), strict=True)
        np.savez(file, pixels=np.stack(pixels), boxes=np.stack(boxes))
    with np.load(file) as stored:
        return stored["pixels"], stored["boxes"]


# --- network ----------------------------------------------------------------------------------------------------------


def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Windows are centred on their output cells: odd kernels at stride 2 would shift the heat map by 3.5 pixels."""
    padding = (kernel - stride) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = block(channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class DemoNet(nn.Module):
    """(N,3,128,128) normalised -> (N,classes) logits. Stride 8, receptive field 62, of which the middle 46 count most.

    Without the averaging, every cell that sees part of an object fires alike and the highest may lie just outside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 16, 4, stride=2),
            block(16, 24, 3),
            block(24, 40, 2, stride=2),
            Residual(40),
            Residual(40),
            block(40, 80, 2, stride=2),
            Residual(80),
            nn.AvgPool2d(3, stride=1, padding=1),
            block(80, 96, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, len(LABELS))

    def forward(self, x: torch.Tensor, power: float = 1) -> torch.Tensor:
        A = self.features(x)
        pooled = self.pool(A) if power == 1 else self.pool(A.clamp(min=1e-3) ** power) ** (1 / power)
        return self.classifier(pooled.flatten(1))


Batch = tuple[torch.Tensor, torch.Tensor]


def batches(pixels: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
    order = rng.permutation(len(pixels))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        x = normalise(pixels[chosen])[:, rng.permutation(3)]  # colour says nothing: any order of channels is as good
        if rng.random() < 0.5:
            x = x[..., ::-1].copy()
        yield torch.from_numpy(x).contiguous(memory_format=torch.channels_last), torch.from_numpy(targets[chosen])


def train(pixels: np.ndarray, targets: np.ndarray) -> DemoNet:
    """The pooling starts as a power mean (power 4, near to a maximum) and ends as the plain mean that is exported.

    A plain mean from the start dilutes a small object so much that nothing is learned in the first epochs.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    net = DemoNet().to(memory_format=torch.channels_last).train()
    steps = EPOCHS * (len(pixels) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    loss_of = nn.BCEWithLogitsLoss()
    step = 0
    for epoch in range(EPOCHS):
        started, total = time.perf_counter(), 0.0
        for x, target in batches(pixels, targets, rng):
            power = max(1.0, 4 - 3 * step / (0.55 * steps))
            loss = loss_of(net(x, power), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1:2}  loss {total * EPOCHS / steps:.4f}  {seconds:.0f} s", flush=True)
    return net.eval()


def export(net: DemoNet, path: Path) -> None:
    torch.onnx.export(
        nn.Sequential(net, nn.Sigmoid()).eval(),
        (torch.zeros(1, 3, *PREPROCESS["size"]),),
        str(path),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_axes={"image": {0: "N"}, "probabilities": {0: "N"}},
        opset_version=18,
        do_constant_folding=True,
        dynamo=False,
    )
    model = onnx.load(path)
    model.ir_version = 8
    for node in model.graph.node:
        node.ClearField("doc_string")
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {"onnxcam.labels": json.dumps(LABELS), "onnxcam.preprocess": json.dumps(PREPROCESS)}
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


# --- what the file does, asked of the file through ONNX Runtime -------------------------------------------------------


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


@dataclass(frozen=True)
class Measured:
    table: str
    worst_accuracy: float  # of any class
    top_is_present: float
    peak_in_box: float


def measure(path: Path, pixels: np.ndarray, boxes: np.ndarray) -> Measured:
    """Classification, and the peak of Grad-CAM: under pooling + linear it is ReLU(sum_k w_k A_k), w the class's row."""
    model = onnx.load(path)
    (pooling,) = (n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    (gemm,) = (n for n in model.graph.node if n.op_type == "Gemm")
    weights = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == gemm.input[1])
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(pooling.input[0]))
    run = session(model)
    probabilities, hits = np.empty(boxes.shape[:2], np.float32), np.zeros(boxes.shape[:2], bool)
    for start in range(0, len(pixels), 100):
        part = slice(start, start + 100)
        probabilities[part], A = run.run(None, {"image": normalise(pixels[part])})
        maps = torch.from_numpy(np.einsum("ck,nkhw->nchw", weights, A)).relu()
        maps = nn.functional.interpolate(maps, tuple(PREPROCESS["size"]), mode="bilinear", align_corners=False)
        y, x = np.divmod(maps.flatten(2).argmax(2).numpy(), PREPROCESS["size"][1])
        x0, y0, x1, y1 = np.moveaxis(boxes[part], -1, 0)
        hits[part] = (x0 <= x + 0.5) & (x + 0.5 < x1) & (y0 <= y + 0.5) & (y + 0.5 < y1)  # false where the box is NaN
    present, said = ~np.isnan(boxes[..., 0]), probabilities > 0.5
    lines = ["| class | present in | accuracy | recall | precision | Grad-CAM peak in box |", "|---" * 6 + "|"]
    worst_accuracy = 1.0
    for c, label in enumerate(LABELS):
        accuracy = (present[:, c] == said[:, c]).mean()
        recall = said[present[:, c], c].mean()
        precision = present[said[:, c], c].mean()
        worst_accuracy = min(worst_accuracy, accuracy)
        values = " | ".join(f"{v:.2%}" for v in (accuracy, recall, precision, hits[present[:, c], c].mean()))
        lines.append(f"| {label} | {present[:, c].sum()} | {values} |")
    top = present[np.arange(len(present)), probabilities.argmax(1)].mean()
    return Measured("\n".join(lines), worst_accuracy, float(top), float(hits[present].mean()))


# --- the pictures that ship -------------------------------------------------------------------------------------------

SHIPPED: dict[str, tuple[tuple[int, int], list[str]]] = {
    "demo.jpg": ((320, 240), ["umbrella", "key"]),
    "arrow.jpg": ((320, 240), ["arrow"]),
    "crescent-star.jpg": ((240, 320), ["crescent", "star"]),
    "cross-flower-ladder.jpg": ((320, 240), ["cross", "flower", "ladder"]),
    "flower.jpg": ((280, 280), ["flower"]),
    "key-spiral.jpg": ((280, 280), ["key", "spiral"]),
    "ring-spiral-umbrella.jpg": ((320, 240), ["ring", "spiral", "umbrella"]),
    "ladder-ring.jpg": ((240, 320), ["ladder", "ring"]),
}


def far_apart(objects: list[Placed], size: tuple[int, int]) -> bool:
    centres = [((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2) for o in objects]
    return len(centres) == 2 and math.dist(*centres) > 0.6 * max(size)


def draw_shipped(path: Path, folder: Path) -> None:
    """Writes, for each entry, the first drawing the model is sure about (present > 0.9, absent < 0.1)."""
    run = session(onnx.load(path))
    folder.mkdir(exist_ok=True)
    boxes = {}
    for i, (name, (size, labels)) in enumerate(SHIPPED.items()):
        for attempt in range(1000):
            picture = draw_picture(np.random.default_rng((SEED + 2, i, attempt)), size, labels)
            picture.image.save(folder / name, quality=90)
            (p,) = run.run(None, {"image": normalise(letterbox(Image.open(folder / name))[0][None])})[0]
            present = np.isin(LABELS, labels)
            demo = name == "demo.jpg"
            sure = p[present].min() > (0.98 if demo else 0.9) and p[~present].max() < 0.1
            whole = len(picture.objects) == len(labels)
            if sure and whole and (not demo or far_apart(picture.objects, size)):
                break
        else:
            sys.exit(f"{name}: no drawing the model is sure about")
        objects = [{"label": o.label, "box_xyxy": list(o.box)} for o in picture.objects]
        boxes[name] = {"width": size[0], "height": size[1], "objects": objects}
        said = ", ".join(f"{LABELS[c]} {p[c]:.3f}" for c in np.argsort(-p)[: len(labels) + 1])
        print(f"{name}: drawing {attempt + 1}, {said}")
    (folder / "boxes.json").write_text(json.dumps(boxes, indent=1) + "\n")


README = """\
# The demo model and its pictures

Everything here is written by `make_models.py` (this file too), which draws every picture itself: no photograph, font or
other person's material is in it. Licence: the project's, Apache-2.0.

* `demo.onnx`: a CNN of {parameters:,} parameters ({kilobytes} kB) that says which of {count} kinds of object are in a
  picture: {labels}.
  Input `image` (N,3,128,128) float32, output `probabilities` (N,{count}), one independent sigmoid per class.
  Opset {opset}, IR {ir}. The last feature map before the pooling is 16 x 16; each of its cells sees 62 x 62 pixels.
  Its metadata carry the class names (`onnxcam.labels`) and the preprocessing (`onnxcam.preprocess`).
* `pictures/*.jpg`: sample pictures, JPEG quality 90.
* `pictures/boxes.json`: what is in each and where: x0, y0, x1, y1 in pixels, x1 and y1 exclusive.

## How they were made

    python models/make_models.py --cache SCRATCH_FOLDER

with seed {seed}, torch {torch}, onnx {onnx}, onnxruntime {ort}, numpy {numpy}, Pillow {pillow}, {threads} threads:
{train:,} pictures, {epochs} epochs, trained in {minutes:.1f} minutes of wall time on a busy machine. The network
was told what is in a picture, never where: no box was used in training. Colour, size, place and rotation are drawn
independently of the kind.

## Measured

On {held_out:,} pictures drawn from a seed that no choice was based on, by ONNX Runtime from the file, at threshold 0.5.
"Grad-CAM peak in box": the highest point of the class's map, bilinearly enlarged to the input, lies in the box of that
class.

{table}

The class with the highest probability is among those present in {top:.2%} of the pictures. Grad-CAM's peak is in the
box in {peak:.2%} of all (picture, present class) pairs, the wrongly classified ones included.

The sample pictures are chosen: each is the first drawing of its list of kinds that the model is sure about (every
present class above 0.9, every absent one below 0.1; in `demo.jpg` the two objects are also far apart and both above
0.98). They show what a map looks like; how often the model is right is what the table is for.

## SHA-256

{hashes}
"""


def measure_and_describe(path: Path, minutes: float, cache: Path) -> None:
    """Writes the sample pictures and the README, or ends the program if the model is not good enough to ship."""
    # Not SEED + 1: the network was designed while looking at that set.
    measured = measure(path, *draw_set(SEED + 3, HELD_OUT, cache))
    print(measured.table)
    print(f"top class present {measured.top_is_present:.2%}, peak in box {measured.peak_in_box:.2%}")
    if min(measured.worst_accuracy, measured.top_is_present, measured.peak_in_box) < 0.95:
        sys.exit("below 95 %: not good enough to ship")
    draw_shipped(path, HERE / "pictures")

    files = [path, *(HERE / "pictures" / name for name in [*SHIPPED, "boxes.json"])]
    model = onnx.load(path)
    readme = README.format(
        parameters=sum(numpy_helper.to_array(t).size for t in model.graph.initializer),
        kilobytes=round(path.stat().st_size / 1000),
        opset=model.opset_import[0].version,
        ir=model.ir_version,
        count=len(LABELS),
        labels=", ".join(LABELS),
        seed=SEED,
        torch=torch.__version__,
        onnx=onnx.__version__,
        ort=onnxruntime.__version__,
        numpy=np.__version__,
        pillow=PIL.__version__,
        threads=THREADS,
        train=TRAIN,
        epochs=EPOCHS,
        minutes=minutes,
        held_out=HELD_OUT,
        table=measured.table,
        top=measured.top_is_present,
        peak=measured.peak_in_box,
        hashes="\n".join(f"    {hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(HERE)}" for f in files),
    )
    (HERE / "README.md").write_text(readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="scratch folder for the drawn sets")
    cache: Path = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)

    pixels, boxes = draw_set(SEED, TRAIN, cache)
    started = time.perf_counter()
    net = train(pixels, (~np.isnan(boxes[..., 0])).astype(np.float32))
    minutes = (time.perf_counter() - started) / 60
    path = HERE / "demo.onnx"
    export(net, path)
    measure_and_describe(path, minutes, cache)


if __name__ == "__main__":
    main()
