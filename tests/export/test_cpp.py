"""The C++ library, installed and used from an empty folder, gives what Python gives; so do exported files in C++."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxcam
from onnxcam import Explainer, _core, demo
from onnxcam.exported import export
from onnxcam.preprocess import View
from onnxcam.render import COLORMAPS, colormap
from onnxcam.render import overlay as python_overlay
from onnxcam.runtime import Session
from onnxcam.saliency import saliency_maps

ROOT = Path(__file__).parents[2]
DEMO = demo.FOLDER / "demo.onnx"
DOC = ROOT / "docs" / "use-from-cpp.md"

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or no C++ compiler"
)


def call(*words: str | Path) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed."""
    folder = tmp_path_factory.mktemp("library")
    call("cmake", "-S", ROOT, "-B", folder / "build", "-DONNXCAM_CLONES=", "-DCMAKE_INSTALL_LIBDIR=lib")
    call("cmake", "--build", folder / "build", "--parallel", "2")
    call("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.fixture(scope="session")
def library(prefix: Path) -> ctypes.CDLL:
    (name,) = (prefix / "lib").glob("libonnxcam.*[yo]") if os.name == "posix" else (prefix / "bin").glob("*.dll")
    found = ctypes.CDLL(str(name))
    found.onnxcam_describe.restype = found.onnxcam_version.restype = ctypes.c_char_p
    return found


def sizes(*numbers: int) -> list[ctypes.c_size_t]:
    return [ctypes.c_size_t(n) for n in numbers]


def pointer(array: Any) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_the_c_functions_make_pythons_map_of_a_models_outputs_bit_for_bit(library: ctypes.CDLL, method: str) -> None:
    """alpha (N, K, 1, 1) and (N, K, h, w)."""
    x = np.random.default_rng(5).normal(size=(2, 3, 128, 128)).astype(np.float32)
    outputs = Session(onnxcam.rewrite(DEMO, method=method), threads=1).run({"image": x, "class_index": np.array([4])})
    a, alpha = outputs["onnxcam_activations"], outputs["onnxcam_alpha"]
    raw, maps = np.empty((2, *a.shape[2:]), np.float32), np.empty((2, 128, 128), np.float32)
    weights = [pointer(alpha), *sizes(alpha.shape[0], *alpha.shape[2:])]
    assert library.onnxcam_raw_maps(pointer(a), *sizes(*a.shape), *weights, pointer(raw), 0) == 0
    assert library.onnxcam_heat_maps(pointer(a), *sizes(*a.shape), *weights, pointer(maps), *sizes(128, 128), 0) == 0
    sums = _core.weighted_sum(a, alpha, relu=False)
    assert np.array_equal(raw, sums)
    assert np.array_equal(maps, saliency_maps([sums], [View.identity((128, 128))] * 2)) and maps.max() > 0.99
    explained = Explainer(DEMO, method=method, threads=1).explain_tensor(x, 4)
    np.testing.assert_allclose(maps, [e.values for e in explained], atol=1e-5)
    again = np.empty_like(maps)
    assert library.onnxcam_heat_maps_of_raw(pointer(raw), *sizes(*raw.shape), pointer(again), *sizes(128, 128), 1) == 0
    assert np.array_equal(again, maps)


@pytest.mark.parametrize("name", sorted(COLORMAPS))
def test_the_c_functions_colour_as_python_does(library: ctypes.CDLL, name: str) -> None:
    table, rgba, out = np.empty((256, 3), np.uint8), np.empty((9, 31, 4), np.uint8), np.empty((9, 31, 3), np.uint8)
    assert library.onnxcam_colormap(name.encode(), pointer(table)) == 0
    assert np.array_equal(table, colormap(name))
    rng = np.random.default_rng(1)
    picture, values = rng.integers(0, 256, out.shape).astype(np.uint8), rng.random((9, 31), np.float32)
    half = ctypes.c_float(0.4)
    arguments = [pointer(values), *sizes(values.size), pointer(table), half]
    assert library.onnxcam_overlay(pointer(picture), *arguments, pointer(out)) == 0
    assert np.array_equal(out, python_overlay(picture, values, (0, 0, 31, 9), name, 0.4))
    assert library.onnxcam_colored(*arguments, pointer(rgba)) == 0
    layer = Image.alpha_composite(Image.fromarray(picture).convert("RGBA"), Image.fromarray(rgba))
    assert np.abs(np.asarray(layer)[..., :3].astype(int) - out).max() <= 1  # Pillow rounds elsewhere


def test_the_c_functions_say_what_is_wrong_and_write_nothing(library: ctypes.CDLL) -> None:
    a, alpha, raw = (np.full(n, 7, np.float32) for n in (24, 3, 8))
    code = library.onnxcam_raw_maps(
        pointer(a), *sizes(1, 3, 2, 4), pointer(alpha), *sizes(2, 1, 1), pointer(raw), ctypes.c_int(0)
    )
    assert b"alpha does not broadcast" in library.onnxcam_describe(code) and (raw == 7).all()
    assert b"no such colormap" in library.onnxcam_describe(library.onnxcam_colormap(b"rainbow", pointer(raw)))
    assert library.onnxcam_version().decode() == onnxcam.__version__


def test_the_program_of_the_guide_builds_from_the_prefix_and_prints_what_it_says(prefix: Path, tmp_path: Path) -> None:
    text = DOC.read_text("utf-8")
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("cmake", "cpp", "text")}
    (tmp_path / "CMakeLists.txt").write_text(blocks["cmake"][0])
    (tmp_path / "heat.cpp").write_text(blocks["cpp"][0])
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", tmp_path / "build")
    assert call(tmp_path / "build" / "heat") == blocks["text"][0]


def _openvino() -> Path | None:
    """The CMake package inside OpenVINO's wheel."""
    found = importlib.util.find_spec("openvino")
    return Path(found.origin).parent / "cmake" if found and found.origin else None


@pytest.fixture(scope="session")
def example(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built in a folder that holds nothing else; $ONNXRUNTIME_DIR has ONNX Runtime's include and lib."""
    folder = tmp_path_factory.mktemp("example")
    for file in (ROOT / "examples" / "cpp").iterdir():
        shutil.copy(file, folder)
    prefixes = ";".join([str(prefix), *filter(None, [os.environ.get("ONNXRUNTIME_DIR")])])
    call("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={prefixes}",
         *([f"-DOpenVINO_DIR={_openvino()}"] if _openvino() else []))  # fmt: skip
    call("cmake", "--build", folder / "build", "--parallel", "2")
    return folder / "build"


with_openvino = pytest.mark.skipif(_openvino() is None, reason="openvino is not installed")
RUNTIMES = [
    pytest.param("openvino", marks=with_openvino),
    pytest.param(
        "onnxruntime",
        marks=pytest.mark.skipif("ONNXRUNTIME_DIR" not in os.environ, reason="no ONNX Runtime SDK in $ONNXRUNTIME_DIR"),
    ),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("label", [None, "umbrella"])
def test_a_program_without_python_predicts_and_explains_as_python_does(
    example: Path, tmp_path: Path, runtime: str, label: str | None
) -> None:
    export(DEMO, tmp_path / "m.onnx", picture_input=True, class_input="required", threads=1)
    picture = Image.open(demo.PICTURES / "demo.jpg").convert("RGB").resize((128, 128))
    picture.save(tmp_path / "in.ppm")
    explainer = Explainer(DEMO, threads=1)
    expected = explainer(np.asarray(picture), label)
    x = explainer.preprocess(onnxcam.load_picture(np.asarray(picture)))[0]
    (probabilities,) = Session(onnx.load(DEMO), threads=1).run({"image": x})["probabilities"]
    asked = [] if label is None else [str(expected.class_index)]
    program = example / f"explain_{runtime}"
    said = call(program, tmp_path / "m.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm", *asked)
    number, score = re.fullmatch(r"class (\d+), score (.*)\n", said).groups()  # type: ignore[union-attr]
    assert int(number) == probabilities.argmax() and float(score) == pytest.approx(probabilities.max(), abs=1e-3)
    _, size, order, data = (tmp_path / "out.pfm").read_bytes().split(b"\n", 3)
    heatmap = np.frombuffer(data, "<f4").reshape(128, 128)[::-1]
    assert (size, order) == (b"128 128", b"-1.0") and heatmap.max() > 0.99
    assert np.abs(heatmap - expected.values).max() < 1e-3
    drawn = np.asarray(Image.open(tmp_path / "out.ppm")).astype(int)
    assert (np.abs(drawn - np.asarray(expected.overlay())) > 1).mean() < 1e-3


@with_openvino
def test_the_example_says_what_is_wrong_with_a_picture(example: Path, tmp_path: Path) -> None:
    export(DEMO, tmp_path / "m.onnx", picture_input=True, class_input="required", verify=False)
    Image.new("RGB", (64, 32)).save(tmp_path / "in.ppm")
    words = [example / "explain_openvino", tmp_path / "m.onnx", tmp_path / "in.ppm", tmp_path / "out.ppm"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.endswith("in.ppm is 64x32; make it 128x128 first\n")
    assert not (tmp_path / "out.ppm").exists()
