"""A folder with broken and odd pictures: every good one explained, every bad one reported, none in silence."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcam.audit.records import read_records
from onnxcam.audit.run import Output, audit
from onnxcam.audit.sources import Sources
from onnxcam.explainer import Explainer

Pixels = np.ndarray


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge(path: Path, _: Pixels) -> None:
    """20,000 x 20,000, one bit each: a valid file of 49 kB."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(2501 * 1000)) for _ in range(20)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def cut(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD: dict[str, tuple[Callable[[Path, Pixels], object], str]] = {
    "truncated.jpg": (cut, "is damaged or cut short"),
    "truncated.png": (cut, "is damaged or cut short"),
    "empty.png": (lambda path, _: path.write_bytes(b""), "is empty (0 bytes)"),
    "text.jpg": (lambda path, _: path.write_text("no picture"), "is not a picture that Pillow can read"),
    "huge.png": (huge, "has more than 178956970 pixels"),
    "gone.png": (lambda path, _: path.symlink_to("nowhere.png"), "no such file"),
    "noise.gif": (lambda path, _: path.write_bytes(b"GIF89a" + bytes(range(256))), "is "),
}


def palette(path: Path, pixels: Pixels) -> None:
    image = Image.fromarray(pixels).quantize(32)
    image.info["transparency"] = 3
    image.save(path, transparency=3)


def rotated(path: Path, pixels: Pixels) -> None:
    """Stored lying on its side; orientation 6 says to turn it by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif)


def animated(path: Path, pixels: Pixels) -> None:
    frames = [Image.fromarray(np.roll(pixels, 11 * i, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)


# How each is made, its size (H, W), and the pixels that must be explained where they are known exactly.
GOOD: dict[str, tuple[Callable[[Path, Pixels], object], tuple[int, int], Callable[[Pixels], Pixels] | None]] = {
    "plain.png": (lambda path, p: Image.fromarray(p).save(path), (60, 80), lambda p: p),
    "wrong-suffix.jpg": (lambda path, p: Image.fromarray(p).save(path, "PNG"), (60, 80), lambda p: p),
    "dot.png": (lambda path, p: Image.fromarray(p[:1, :1]).save(path), (1, 1), lambda p: p[:1, :1]),
    "cmyk.jpg": (lambda path, p: Image.fromarray(p).convert("CMYK").save(path), (60, 80), None),
    "16-bit.png": (
        lambda path, p: Image.fromarray(p[..., 0].astype(np.uint16) * 257).save(path),
        (60, 80),
        lambda p: np.repeat(p[..., :1], 3, 2),
    ),
    "palette.png": (palette, (60, 80), None),
    "rotated.png": (rotated, (60, 80), lambda p: p),
    "animated.webp": (animated, (60, 80), None),
    "animated.gif": (animated, (60, 80), None),
}


@pytest.fixture
def mixed(tmp_path: Path, pixels: list[Pixels]) -> Path:
    """61 plain pictures, 9 odd ones, 7 broken ones."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(61):
        Image.fromarray(np.roll(pixels[i % 6], i, 1)).save(folder / f"{i:03}.png")
    for name, (make, *_) in {**BAD, **GOOD}.items():
        make(folder / name, pixels[0])
    return folder


def test_every_good_picture_is_explained_and_every_bad_one_reported(
    explainer: Explainer, mixed: Path, tmp_path: Path, pixels: list[Pixels]
) -> None:
    sources = Sources()
    sources.add_inputs([str(mixed)])
    done = audit(explainer, sources.items, tmp_path / "out", output=Output(values="npy"))
    records = {r["name"]: r for r in read_records(tmp_path / "out")}
    assert records.keys() == {p.name for p in mixed.iterdir()} and not sources.left_out
    assert (done.pictures, done.explained, done.errors) == (77, 70, 7)
    failed = {name: r["error"] for name, r in records.items() if r["status"] == "error"}
    assert failed.keys() == BAD.keys()
    for name, error in failed.items():
        assert error["kind"] == "PictureError" and error["hint"]
        assert error["message"].startswith(str(mixed / name)) and BAD[name][1] in error["message"]
    for name, (_, size, seen) in GOOD.items():
        record = records[name]
        assert tuple(record["size"]) == size
        values = np.load(tmp_path / "out" / record["files"]["values"])
        expected = explainer(seen(pixels[0]) if seen else mixed / name)
        np.testing.assert_allclose(values, expected.values, atol=1e-5, err_msg=name)
        assert record["class_index"] == expected.class_index
        with Image.open(tmp_path / "out" / record["files"]["overlay"]) as overlay:
            assert overlay.size == size[::-1]
    assert sum(r["is_empty"] for r in records.values() if r["status"] == "ok") < 5


def test_a_picture_too_large_is_explained_once_the_limit_is_raised(
    explainer: Explainer, tmp_path: Path, pixels: list[Pixels]
) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    sources = Sources()
    sources.add_inputs([str(tmp_path / "a.png")])
    first = audit(explainer, sources.items, tmp_path / "out", max_pixels=60 * 80 - 1)
    assert (first.errors, "has more than 4799 pixels" in first.first_errors[0][1]) == (1, True)
    assert audit(explainer, sources.items, tmp_path / "out", max_pixels=60 * 80).explained == 1
