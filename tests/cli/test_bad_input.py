"""Every mistake has its designed message, hint and exit code, and leaves no file behind."""

import argparse
import ast
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from colours import COLOURS, Result, described, listing
from onnx import numpy_helper, parser
from PIL import Image

from onnxcam import cli

Refused = Callable[..., Result]


def spoil(path: str, content: bytes) -> str:
    Path(path).write_bytes(content)
    return path


def saved(text: str, path: str = "other.onnx") -> str:
    onnx.save(parser.parse_model(text), path)
    return path


TWO_BLOCKERS = """
    <ir_version: 8, opset_import: ["" : 18, "acme" : 1]>
    blocked (float[N,3,8,8] x) => (float[N,3] y)
    <float[N,3] f1, float[N,3] f2, float[N,3] f3, float[3,3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}>
    {
        a = Relu(x)
        p = GlobalAveragePool(a)
        f = Flatten(p)
        [first] f1 = acme.Fuse(f)
        [second] f2 = acme.Fuse(f1)
        [third] f3 = acme.Squash(f2)
        y = Gemm<transB=1>(f3, w)
    }"""

MODELS: dict[str, tuple[Callable[[], str], int, str, str]] = {
    "is a PyTorch checkpoint": (
        lambda: spoil("net.pth", b"\x80\x02}q\x00."), 3, "net.pth is not an ONNX model: it is a Python pickle",
        "torch.onnx.export",
    ),
    "is truncated": (
        lambda: spoil("cut.onnx", Path("colours.onnx").read_bytes()[:-7]), 3, "cut.onnx cannot be read: it is trunc",
        "download it again",
    ),
    "is empty": (lambda: spoil("empty.onnx", b""), 3, "empty.onnx is empty", "make it again"),
    "is a Git LFS pointer": (
        lambda: spoil("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\n"), 3, "lfs.onnx is not an ONNX model",
        "git lfs pull",
    ),
    "does not exist": (
        lambda: "colour.onnx", 3, "colour.onnx: no such file", "did you mean `colours.onnx`?",
    ),
    "is a folder": (lambda: ".", 3, ". is a folder", "it holds `colours.onnx`"),
    "is the picture": (lambda: "dog.png", 3, "dog.png is not an ONNX model: it is a PNG picture", "MODEL IMAGE"),
    "fails the checker": (
        lambda: saved(COLOURS.replace("Relu", "Rellu")), 3, "other.onnx is not a valid ONNX model: No Op registered",
        "export it again",
    ),
    "has no picture input": (
        lambda: saved('<ir_version: 8, opset_import: ["" : 18]> g (int64[N,9] ids) => (int64[N,9] y) { y = Neg(ids) }'),
        3, "other.onnx has no picture input: `ids` ['N', 9]", "(N, C, H, W)",
    ),
    "has operators without a rule": (
        lambda: saved(TWO_BLOCKERS), 4, "2 operators have no derivative rule between", "choose a layer after them",
    ),
    "has no feature map": (
        lambda: saved('<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3] y) '
                      "{ p = GlobalAveragePool(x) y = Flatten(p) }"),
        4, "no feature map with a spatial grid lies between `x` and `y`", "--layer",
    ),
    "has no class scores": (
        lambda: saved('<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3,8,8] y) '
                      "{ y = Relu(x) }"),
        4, "no output holds one score per class, or per class and pixel: `y` ['N', 3, 8, 8]", "--element",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that(name: str, refused: Refused) -> None:
    make, code, message, hint = MODELS[name]
    refused(["explain", make(), "dog.png"], code, message, hint)


@pytest.mark.parametrize("command", ["layers", "check"])
@pytest.mark.parametrize("name", ["is truncated", "fails the checker", "has no class scores"])
def test_layers_and_check_refuse_a_model_that(name: str, command: str, onnxcam: Callable[..., Result]) -> None:
    make, code, message, hint = MODELS[name]
    result = onnxcam(command, make())
    assert result.code == code and message in result.err and hint in result.err


def test_every_operator_without_a_rule_is_named_with_count_and_first_node(refused: Refused) -> None:
    result = refused(["explain", saved(TWO_BLOCKERS), "dog.png"], 4, "between `a` and", "`onnxcam layers MODEL`")
    assert "  acme::Fuse    2x  first node `first`\n" in result.err
    assert "  acme::Squash  1x  first node `third`\n" in result.err


PICTURES: dict[str, tuple[Callable[[], str], str, str]] = {
    "does not exist": (lambda: "cat.png", "cat.png: no such file", "check the path"),
    "is no picture": (lambda: spoil("note.png", b"hello"), "note.png: is not a picture", "convert it"),
    "is the model": (lambda: "colours.onnx", "colours.onnx: is not a picture", "convert it"),
    "is truncated": (
        lambda: spoil("cut.png", Path("dog.png").read_bytes()[:60]), "cut.png: is damaged or cut short", "again",
    ),
    "is empty": (lambda: spoil("empty.png", b""), "empty.png: is empty (0 bytes)", "again"),
}  # fmt: skip


def test_one_picture_that_does_not_exist_makes_no_folder(refused: Refused) -> None:
    refused(["explain", "colours.onnx", "cat.png", "-o", "out/"], 5, "cat.png: no such file", "check the path")
    assert not Path("out").exists()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that(name: str, refused: Refused) -> None:
    make, message, hint = PICTURES[name]
    refused(["explain", "colours.onnx", make()], 5, message, hint)


DETECTOR = """
    <ir_version: 8, opset_import: ["" : 18]>
    boxes (float[1,3,64,64] x) => (float[1,64,8] output)
    <float[8,3,1,1] w>
    { p = AveragePool<kernel_shape=[8, 8], strides=[8, 8]>(x) a = Relu(p) c = Conv(a, w)
      s = Constant<value_ints=[1, 8, -1]>() r = Reshape(c, s) t = Transpose<perm=[0, 2, 1]>(r) output = Sigmoid(t) }"""


DETECTORS: dict[str, tuple[list[str], str, str]] = {
    "web": ([], "boxes.onnx is a detector", "onnxcam export"),
    "evaluate": (["."], "boxes.onnx is a detector", "onnxcam explain"),
    "layers": (["--preview", "dog.png"], "this model is a detector", "--layer NAME"),
}


@pytest.mark.parametrize("command", DETECTORS)
def test_a_detector_is_called_one_where_a_class_is_needed(command: str, refused: Refused) -> None:
    model = parser.parse_model(DETECTOR)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 1, 1), np.float32), "w"))
    onnx.save(model, "boxes.onnx")
    options, message, hint = DETECTORS[command]
    refused([command, "boxes.onnx", *options], 4, message, hint)


def test_a_folder_of_pictures_needs_a_folder_to_go_to(refused: Refused) -> None:
    refused(["explain", "colours.onnx", "."], 2, "several pictures need a folder to go to", "`-o out`")


ARGUMENTS: dict[str, tuple[list[str], str, str]] = {
    "unknown layer": (["--layer", "aa"], "the model has no layer `aa`", "did you mean `a`?"),
    "unknown method": (["--method", "grad-cam"], "there is no method `grad-cam`", "did you mean `gradcam`?"),
    "unknown label": (["--target", "tabi cat"], "no class is called `tabi cat`", "did you mean `tabby, tabby cat`?"),
    "ambiguous label": (
        ["--target", "crane"], "label `crane` fits 2 classes: 1 `crane, bird`, 2 `crane, machine`", "give the index",
    ),
    "class out of range": (["--target", "3"], "class 3 does not exist: the model has 3 classes", "give 0 to 2"),
    "class below range": (["--target", "-2"], "class -2 does not exist", "-1 for the predicted class"),
    "unknown output": (["--class-output", "probs"], "the model has no output `probs`", "its outputs: `y`"),
    "unknown colormap": (["--colormap", "rainbow"], "unknown colormap `rainbow`", "jet, viridis, hot, gray"),
    "opacity above 1": (["--opacity", "1.5"], "opacity 1.5 is outside [0, 1]", "0 is the picture alone"),
    "unknown provider": (["--provider", "cudaa"], "execution provider `cudaa` is not available", "available: "),
    "size that the file contradicts": (["--size", "9x9"], "takes pictures of 8x8, not 9x9", "leave the size out"),
    "missing labels file": (["--labels", "names.txt"], "names.txt cannot be read: No such file", "one label per line"),
    "gray for a colour model": (["--channels", "gray"], "takes 3 channels, but `gray` pictures", "--channels rgb"),
    "std of 0": (["--std", "0"], "std: ", "correct the arguments"),
    "missing custom operators": (["--custom-ops", "ops.so"], "custom operator library `ops.so`", "shared library"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument_with(name: str, refused: Refused) -> None:
    options, message, hint = ARGUMENTS[name]
    refused(["explain", "colours.onnx", "dog.png", *options], 2, message, hint)


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        ("a\nb\n", "put a line before the others"),
        ("a\n", "in the order of the model's output"),
        ("background\na\nb\nc\n", "`tail -n +2`"),
        ("a\nb\nc\nd\n", "`head -n 3`"),
    ],
)
def test_labels_for_another_number_of_classes_are_refused(lines: str, hint: str, refused: Refused) -> None:
    Path("names.txt").write_text(lines)
    arguments = ["explain", "colours.onnx", "dog.png", "--labels", "names.txt"]
    refused(arguments, 2, f"names.txt: {len(lines.split())} labels, but the model has 3 classes", hint)


def test_an_overlay_is_never_read_as_a_picture(refused: Refused) -> None:
    Image.new("RGB", (4, 4)).save("dog.cam.png")
    for name in ("dog.cam.png", "DOG.CAM.PNG"):
        refused(["explain", "colours.onnx", name], 2, f"{name} is an overlay", "the picture that it was made from")


WRONG: dict[str, tuple[list[str], str, str]] = {
    "nothing": ([], "required: COMMAND", "`onnxcam --help`"),
    "an unknown command": (["explan"], "invalid choice: 'explan'", "`onnxcam --help`"),
    "no model": (["explain"], "required: MODEL", "`onnxcam explain --help`"),
    "no picture": (["explain", "colours.onnx"], "there is no picture to explain", "name one behind the model"),
    "a size that is none": (["explain", "m.onnx", "x.png", "--size", "big"], "argument --size: `big`", "--help"),
    "a value that is none": (["explain", "m.onnx", "--fit", "pad"], "argument --fit: invalid choice", "explain --help"),
    "a mistyped option": (
        ["explain", "m.onnx", "x.png", "--methd", "cam"], "`onnxcam explain` has no option `--methd`",
        "did you mean `--method`? ",
    ),
    "an option of another command": (["methods", "--layer=a"], "has no option `--layer=a`", "methods --help"),
    "one argument too many": (["ops", "Relu"], "`onnxcam ops` has no use for `Relu`", "`onnxcam ops --help`"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_refused_with_what_was_meant(name: str, refused: Refused) -> None:
    argv, message, hint = WRONG[name]
    refused(argv, 2, message, hint)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--scale", "1"], "`scale` is given without `mean`, `std`", "--scale 1 --mean 0 --std 1"),
        (["--scale", "1", "--mean", "104,117,124"], "`scale` is given without `std`", "--scale 1 --mean 0 --std 1"),
        (["--mean", "104,117,124"], "mean 104 is above every pixel", "`--scale 1`"),
    ],
)
def test_settings_that_contradict_the_defaults_beside_them_are_refused(
    options: list[str], message: str, hint: str, refused: Refused
) -> None:
    saved(COLOURS, "plain.onnx")
    refused(["explain", "plain.onnx", "dog.png", *options], 2, message, hint)


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_gray_beside_the_defaults_of_a_colour_model_says_what_the_model_takes(command: str, refused: Refused) -> None:
    saved(COLOURS, "plain.onnx")
    said = "  mean: found 3 values, but `gray` pictures have 1 channel\n  std: found 3 values"
    advice = "choose `--channels rgb` or `bgr` where the model takes colour"
    refused([command, "plain.onnx", "dog.png", "--channels", "gray"], 2, said, advice)
    assert "rgb" not in refused([command, "plain.onnx", "dog.png", "--std", "0"], 2, "std: ", "correct the").err


OUTPUTS: dict[str, tuple[str, str, str]] = {
    "in a folder that is not there": (
        "missing/out.png",
        "missing/out.png: there is no folder missing",
        "mkdir -p missing",
    ),
    "below a file": ("dog.png/out.png", "dog.png/out.png: there is no folder dog.png", "mkdir"),
    "that is a folder": ("there", "there is a folder", "`there/out.png`"),
    "of an unknown kind": ("out.pdf", "out.pdf: cannot write a `.pdf` file", ".png, .jpg, .jpeg, .webp, .npy, .json"),
    "without a suffix": ("out", "out: does not say what kind of file", "end it in one of .png"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output(name: str, refused: Refused) -> None:
    path, message, hint = OUTPUTS[name]
    Path("there").mkdir()
    refused(["explain", "colours.onnx", "dog.png", "-o", path], 6, message, hint)


def test_a_bad_output_is_refused_before_any_work(refused: Refused) -> None:
    refused(["explain", "absent.onnx", "absent.png", "-o", "missing/out.png"], 6, "there is no folder", "mkdir")


def test_a_folder_without_write_permission_is_refused_before_any_work(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, whom no folder refuses
    refused(["explain", "colours.onnx", "dog.png"], 6, "the folder . is not writable", "choose another folder")


def failing(error: OSError | KeyboardInterrupt) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("step", ["mkstemp", "replace", "fdopen"])
def test_a_write_that_fails_leaves_nothing_half_written(
    step: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = failing(OSError(28, "No space left on device"))
    owner = {"mkstemp": tempfile, "replace": Path, "fdopen": os}[step]
    monkeypatch.setattr(owner, step, full)
    arguments = ["explain", "colours.onnx", "dog.png", "-o", "out.png"]
    refused(arguments, 6, "out.png cannot be written: No space left on device", "choose another place")


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_temporary_one(
    folder: Path, onnxcam: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.npy").write_bytes(b"old")
    before = listing(folder)
    monkeypatch.setattr(Path, "replace", failing(KeyboardInterrupt()))
    result = onnxcam("explain", "colours.onnx", "dog.png", "-o", "out.npy")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")
    assert listing(folder) == before


def test_a_model_that_the_runtime_cannot_load_says_so_with_the_runtimes_reason(refused: Refused) -> None:
    text = (
        TWO_BLOCKERS.replace("p = GlobalAveragePool(a)", "")
        .replace("f = Flatten(p)", "")
        .replace("[first] f1 = acme.Fuse(f)", "[first] f1 = acme.Fuse(a)")
    )
    after = "y = Gemm<transB=1>(f3, w)"
    text = text.replace(
        "float[N,3] f1, float[N,3] f2, float[N,3] f3", "float[N,3,8,8] f1, float[N,3,8,8] f2, float[N,3,8,8] f3"
    )
    text = text.replace(after, "r = Relu(f3) q = GlobalAveragePool(r) f = Flatten(q) y = Gemm<transB=1>(f, w)")
    refused(["explain", saved(text), "dog.png"], 3, "ONNX Runtime", "custom_ops_library")


NAN = COLOURS.replace("a = Relu(x)", "k = Constant<value_float=-9.0>() s = Add(x, k) a = Sqrt(s)")
EMPTY = COLOURS.replace("w = {1, 0, 0, 0, 1, 0, 0, 0, 1}", "w = {-1, 0, 0, 0, -1, 0, 0, 0, -1}")


@pytest.mark.parametrize(
    ("text", "warning"),
    [(NAN, "warning: the map holds NaN"), (EMPTY, "warning: the map is empty: no cell of `a` speaks for this class")],
)
def test_an_unfit_map_is_reported_on_screen_and_still_written(
    text: str, warning: str, onnxcam: Callable[..., Result]
) -> None:
    onnx.save(described(text), "other.onnx")
    result = onnxcam("explain", "other.onnx", "dog.png")
    assert result.code == 0 and result.err.startswith(warning)
    with Image.open("dog.cam.png") as overlay, Image.open("dog.png") as picture:
        if text == NAN:
            assert overlay.tobytes() == picture.tobytes()  # uncoloured
        assert overlay.size == picture.size


SOURCES = Path(cli.__file__).parent
SAID = r"`(?:(onnxcam \w+)[^`]*? )?(--[a-z][a-z-]*)"
COMMANDS: dict[str, argparse.ArgumentParser] = cli._parsed(["ops"]).commands


@cache
def texts_that_name_options() -> list[str]:
    """Every string literal of the package that has an option between backticks; what is filled in is `X`."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text())
        whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in whole for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                found.append(node.value)
    return [text for text in found if re.search(SAID, text)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_a_hint_names_is_one_of_the_command_that_it_is_said_of(command: str) -> None:
    """Whichever command a hint ends up in: what it names is this command's option, or said with another's name."""
    texts = texts_that_name_options()
    assert len(texts) > 40
    known = {parser.prog: parser.format_help() for parser in COMMANDS.values()}
    for text in texts:
        hint = cli._reachable(text, COMMANDS[command], COMMANDS)
        for other, option in re.findall(SAID, hint):
            mine = known[other or f"onnxcam {command}"]
            assert re.search(rf"^ +(-\w( \S+)?, )?{option}\b(?!-)", mine, re.MULTILINE), f"{hint!r} names {option}"


TWO_INPUTS = """
    <ir_version: 8, opset_import: ["" : 18]>
    both (float[N,3,8,8] a, float[N,3,8,8] b) => (float[N,3] y)
    { s = Add(a, b) r = Relu(s) p = GlobalAveragePool(r) y = Flatten(p) }"""


@pytest.mark.parametrize(
    ("argv", "code", "hint"),
    [
        (["explain", "both.onnx", "dog.png"], 3, "say which: `--input NAME`"),
        (["evaluate", "both.onnx", "."], 3, "say which: `onnxcam explain --input NAME`"),
        (["explain", "colours.onnx", "vast.png"], 5, "file, `--max-pixels N`,"),
        (["compare", "colours.onnx", "vast.png"], 5, "file, `onnxcam explain --max-pixels N`,"),
        (["layers", "colours.onnx", "--preview", "vast.png"], 5, "file, `onnxcam explain --max-pixels N`,"),
        (["compare", "blind.onnx", "dog.png"], 4, "name a value with `--layers` and"),
        (["check", "blind.onnx"], 4, "choose a value with `onnxcam explain --layer`; where sizes are dynamic, bind"),
    ],
)
def test_a_hint_names_what_the_command_has_else_a_command_that_has_it(
    argv: list[str], code: int, hint: str, onnxcam: Callable[..., Result]
) -> None:
    saved(TWO_INPUTS, "both.onnx")
    saved(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3] y) '
        "{ p = GlobalAveragePool(x) y = Flatten(p) }",
        "blind.onnx",
    )
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0), b"IDAT": b""}
    framed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    spoil("vast.png", b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    result = onnxcam(*argv)
    assert result.code == code and hint in result.err.partition("hint: ")[2]
