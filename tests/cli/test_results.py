"""What a command prints and writes when all is well."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from colours import COLOURS, LABELS, Result, described, listing
from PIL import Image

from onnxcam import Explainer
from onnxcam.targets.classes import class_number

Run = Callable[..., Result]


def test_explain_writes_one_overlay_beside_nothing_else_and_says_where(folder: Path, onnxcam: Run) -> None:
    before = listing(folder)
    result = onnxcam("explain", "colours.onnx", "dog.png")
    assert result.code == 0
    assert listing(folder).keys() - before.keys() == {"dog.cam.png"}
    assert result.out.splitlines()[-1] == "crane, bird: gradcam at a -> dog.cam.png"
    with Image.open("dog.cam.png") as overlay:
        assert (overlay.format, overlay.size, overlay.mode) == ("PNG", (40, 30), "RGB")


def test_the_overlay_goes_to_the_working_folder_and_not_beside_the_picture(folder: Path, onnxcam: Run) -> None:
    (folder / "sub").mkdir()
    Path("dog.png").rename("sub/dog.png")
    assert onnxcam("explain", "colours.onnx", "sub/dog.png").code == 0
    assert Path("dog.cam.png").is_file() and sorted(p.name for p in Path("sub").iterdir()) == ["dog.png"]


def test_explain_prints_the_top_classes_with_labels_and_probabilities_best_first(onnxcam: Run) -> None:
    lines = onnxcam("explain", "colours.onnx", "dog.png").out.splitlines()
    assert lines[0].split() == ["class", "label", "probability"]
    shares = np.array([48, 1152, 0]) / 1200  # 48 of 1200 pixels are red, the others green
    p = np.exp(shares) / np.exp(shares).sum()
    for line, c in zip(lines[1:4], (1, 0, 2), strict=True):
        index, *label, score = line.split()
        assert (int(index), " ".join(label)) == (c, LABELS[c])
        assert float(score) == pytest.approx(p[c], abs=2e-3)  # 8-bit rounding of the picture made small


def test_heuristic_choices_are_said_on_stderr(onnxcam: Run) -> None:
    result = onnxcam("explain", "colours.onnx", "dog.png")
    assert result.err.splitlines() == [
        "note: layer `a` chosen: the last spatial map",
        "note: the final Softmax is stepped over: the class logit is explained",
        "note: preprocessing: from the model's metadata",
    ]


def test_npy_holds_the_values_of_the_python_interface(onnxcam: Run) -> None:
    assert onnxcam("explain", "colours.onnx", "dog.png", "--target", "tabby cat", "-o", "map.npy").code == 0
    values = np.load("map.npy", allow_pickle=False)
    expected = Explainer("colours.onnx")("dog.png", "tabby cat").values
    assert values.dtype == np.float32 and np.array_equal(values, expected)
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert 6 <= y < 12 and 24 <= x < 32


def test_json_file_and_json_output_hold_the_same_record(onnxcam: Run) -> None:
    result = onnxcam("explain", "colours.onnx", "dog.png", "--target", "0", "-o", "record.json", "--json")
    printed = json.loads(result.out)
    assert printed.pop("output") == "record.json"
    assert printed == json.loads(Path("record.json").read_text())
    assert (printed["class_index"], printed["label"], printed["layer"]) == (0, LABELS[0], "a")
    assert printed["provenance"]["target"] == 0


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP"), (".PNG", "PNG")])
def test_the_suffix_chooses_the_kind_of_picture(suffix: str, kind: str, onnxcam: Run) -> None:
    assert onnxcam("explain", "colours.onnx", "dog.png", "-o", f"out{suffix}").code == 0
    with Image.open(f"out{suffix}") as overlay:
        assert (overlay.format, overlay.size) == (kind, (40, 30))


def test_an_existing_output_is_replaced(onnxcam: Run) -> None:
    Path("out.npy").write_bytes(b"old")
    assert onnxcam("explain", "colours.onnx", "dog.png", "-o", "out.npy").code == 0
    assert np.load("out.npy").shape == (30, 40)


def test_the_written_file_has_the_permissions_of_any_other(onnxcam: Run) -> None:
    onnxcam("explain", "colours.onnx", "dog.png")
    Path("plain").touch()
    assert Path("dog.cam.png").stat().st_mode == Path("plain").stat().st_mode


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def test_opacity_0_is_the_picture_and_1_the_colormap_alone(onnxcam: Run) -> None:
    for opacity in ("0", "1"):
        arguments = (
            "--opacity",
            opacity,
            "--colormap",
            "gray",
            "--clip",
            "100",
            "--target",
            "0",
            "-o",
            f"o{opacity}.png",
        )
        assert onnxcam("explain", "colours.onnx", "dog.png", *arguments).code == 0
    assert np.array_equal(pixels("o0.png"), pixels("dog.png"))
    values = Explainer("colours.onnx")("dog.png", 0).values
    assert np.abs(pixels("o1.png") - 255 * values[..., None]).max() <= 1


@pytest.mark.parametrize("target", ["1", "crane, bird", "BIRD", "bird"])
def test_a_target_is_an_index_a_label_or_a_synonym_in_any_case(target: str, onnxcam: Run) -> None:
    result = onnxcam("explain", "colours.onnx", "dog.png", "--target", target, "--json")
    assert json.loads(result.out)["class_index"] == 1


@pytest.mark.parametrize("target", ["tabby, tabby cat", "Tabby, Tabby Cat", "tabby cat"])
def test_a_label_is_found_without_its_wordnet_number(target: str) -> None:
    assert class_number(target, ("n02123045 tabby, tabby cat", "n02123159 tiger cat"), 2) == 0


def test_a_labels_file_names_the_classes(onnxcam: Run) -> None:
    Path("names.txt").write_text("red\ngreen\nblue\n", "utf-8")
    result = onnxcam("explain", "colours.onnx", "dog.png", "--labels", "names.txt", "--target", "red", "--json")
    assert json.loads(result.out)["label"] == "red"


def test_preprocessing_options_change_what_the_model_sees(onnxcam: Run) -> None:
    def top(*options: str) -> dict[str, float]:
        record = json.loads(onnxcam("explain", "colours.onnx", "dog.png", "--json", *options).out)
        return {c["label"]: c["score"] for c in record["top"]}

    plain = top()
    assert top("--channels", "bgr")[LABELS[2]] == pytest.approx(plain[LABELS[0]], abs=1e-6)
    doubled = np.exp(np.array([0.08, 1.92, 0]))
    assert top("--scale", str(2 / 255))[LABELS[1]] == pytest.approx(doubled[1] / doubled.sum(), abs=2e-3)
    assert top("--mean", "0,1,0")[LABELS[1]] < plain[LABELS[1]]


def test_json_of_layers_check_and_methods_parses_and_agrees_with_the_model(onnxcam: Run) -> None:
    (layer,) = json.loads(onnxcam("layers", "colours.onnx", "--json").out)
    assert (layer["name"], layer["op"], layer["channels"], layer["grid"]) == ("a", "Relu", 3, [8, 8])
    report = json.loads(onnxcam("check", "colours.onnx", "--json").out)
    assert report["explainable"] is True and report["automatic"] == "a" and report["opset"] == 18
    assert report["head"] == {"output": "y", "logits": "z", "activation": "Softmax", "classes": 3}
    names = {m["name"] for m in json.loads(onnxcam("methods", "--json").out)}
    assert {"gradcam", "hirescam", "cam"} <= names and set(layer["methods"]) <= names


def test_layers_marks_the_automatic_choice(onnxcam: Run) -> None:
    header, row = onnxcam("layers", "colours.onnx").out.splitlines()
    assert header.split() == ["layer", "operator", "K", "grid", "depth", "methods"]
    assert row.split()[:6] == ["a", "(automatic)", "Relu", "3", "8x8", "1/4"]


def test_check_says_in_words_that_the_model_is_explainable(onnxcam: Run) -> None:
    result = onnxcam("check", "colours.onnx")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "explainable: yes"
    assert "layer    a (Relu, 3 channels, 8x8); 1 candidates" in result.out


DEEP = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,2] y)
    <float[2,3] w = {1, 2, 3, 4, 5, 6}>
    { a1 = Relu(x) a2 = Sigmoid(a1) a3 = Tanh(a2) a4 = Abs(a3) a5 = Exp(a4) BLOCKED
      a6 = Relu(d) a7 = Sigmoid(a6) p = GlobalAveragePool(a7) f = Flatten(p) y = Gemm<transB=1>(f, w) }"""


def test_check_lists_the_five_best_layers_the_automatic_first(onnxcam: Run) -> None:
    onnx.save(onnx.parser.parse_model(DEEP.replace("BLOCKED", "d = Neg(a5)")), "deep.onnx")
    lines = [line.split() for line in onnxcam("check", "deep.onnx").out.splitlines()]
    start = lines.index(["layer", "operator", "K", "grid", "depth", "methods"])
    rows = lines[start + 1 : lines.index([], start)]
    assert [row[0] for row in rows] == ["a7", "a6", "d", "a5", "a4"]
    assert rows[0][:5] == ["a7", "(automatic)", "Sigmoid", "3", "8x8"] and rows[4][:4] == ["a4", "Abs", "3", "8x8"]


def test_check_names_what_keeps_gradients_from_layers(onnxcam: Run) -> None:
    body = "s = MatMul(a5, a5) k = Det(s) form = Constant<value_ints=[-1,3,1,1]>() l = Reshape(k, form) d = Mul(l, x)"
    onnx.save(onnx.parser.parse_model(DEEP.replace("BLOCKED", body)), "deep.onnx")
    assert "blocking Det: no derivative rule, no gradients at 6 candidates" in onnxcam("check", "deep.onnx").out


def test_names_with_square_brackets_are_printed_as_they_are(onnxcam: Run) -> None:
    """rich reads [bold] as markup; exporters and labels are full of brackets."""
    onnx.save(described(COLOURS), "colours.onnx")
    Path("names.txt").write_text("[bold]red[/bold]\n[/]\nblue [x]\n")
    result = onnxcam("explain", "colours.onnx", "dog.png", "--labels", "names.txt", "-o", "a[b].png")
    assert result.code == 0
    assert result.out.splitlines()[-1] == "[/]: gradcam at a -> a[b].png"
    assert "[bold]red[/bold]" in result.out and "blue [x]" in result.out


def test_a_label_file_with_carriage_returns_and_a_byte_order_mark_is_read(onnxcam: Run) -> None:
    Path("names.txt").write_bytes("\ufeffred\r\ngreen\r\nblue\r\n".encode())
    result = onnxcam("explain", "colours.onnx", "dog.png", "--labels", "names.txt", "--target", "red", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["label"] == "red"


def test_json_is_strict_when_the_scores_are_not_numbers(onnxcam: Run) -> None:
    """NaN is no JSON: `jq` and JavaScript refuse it."""
    text = COLOURS.replace("a = Relu(x)", "k = Constant<value_float=-9.0>() s = Add(x, k) a = Sqrt(s)")
    onnx.save(described(text), "nan.onnx")
    result = onnxcam("explain", "nan.onnx", "dog.png", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    record = json.loads(result.out, parse_constant=refuse)
    assert record["has_nan"] is True and record["score"] is None
