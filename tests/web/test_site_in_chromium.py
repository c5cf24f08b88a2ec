"""The page in a real Chromium: Python's numbers, no request elsewhere, the keyboard, hostile names."""

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcam import demo
from onnxcam.explainer import LABELS_KEY, Explainer
from onnxcam.preprocess import Preprocess, load_picture
from onnxcam.web.site import write_site

pytest.importorskip("onnxruntime")
from browser import Browser

DEMO = demo.FOLDER / "demo.onnx"
SHARED = Path(__file__).parents[3] / "shared"
HOSTILE = "<img src=x onerror=globalThis.pwned=1>"
SELECTED = "document.querySelector('#classes [aria-selected=true]')"
CAPTION = "document.getElementById('caption').textContent"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled picture without loss, so that browser and Pillow decode the same pixels."""
    path = tmp_path_factory.mktemp("picture") / "demo.png"
    Image.open(sorted(demo.PICTURES.glob("demo.*"))[0]).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def origin(ort_web: Path, tmp_path_factory: pytest.TempPathFactory, served: Callable[[Path], str]) -> str:
    """The bundled model's site; one label and the file's name are hostile."""
    folder = tmp_path_factory.mktemp("site")
    model = onnx.load(DEMO)
    (labels,) = (p for p in model.metadata_props if p.key == LABELS_KEY)
    labels.value = json.dumps([HOSTILE if name == "key" else name for name in json.loads(labels.value)])
    onnx.save(model, folder / f"{HOSTILE}.onnx")
    write_site(folder / f"{HOSTILE}.onnx", folder / "site", ort_web=ort_web, threads=1)
    return served(folder / "site")


def opened(chromium: Browser, address: str) -> Browser:
    chromium.requests.clear()
    chromium.console.clear()
    chromium.open("about:blank")
    chromium.open(address)
    chromium.wait("globalThis.onnxcam?.ready !== undefined")
    assert chromium.evaluate("onnxcam.ready"), chromium.evaluate("document.body.innerText")
    return chromium


def given(page: Browser, picture: Path) -> dict[str, Any]:
    """The result for a picture: classIndex, scores, heatmap, tensor."""
    page.evaluate("globalThis.before = onnxcam.last; 0")
    page.give_file("#file", picture)
    page.wait("(onnxcam.last && onnxcam.last !== before) || !document.getElementById('alert').hidden")
    assert page.evaluate("document.getElementById('alert').textContent") == ""
    return last(page)


def last(page: Browser) -> dict[str, Any]:
    script = "({...onnxcam.last, scores: [...onnxcam.last.scores], heatmap: [...onnxcam.last.heatmap]"
    return dict(page.evaluate(script + ", tensor: Array.from(onnxcam.last.tensor, Number)})"))


@pytest.fixture
def page(chromium: Browser, origin: str) -> Browser:
    return opened(chromium, origin)


def largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64).ravel() - np.asarray(b, np.float64).ravel()).max())


def test_tensor_scores_and_map_are_pythons_for_the_predicted_and_a_chosen_class(page: Browser, picture: Path) -> None:
    explainer = Explainer(DEMO, threads=1)
    x, _ = explainer.preprocess(load_picture(picture))
    got = given(page, picture)
    assert np.array_equal(np.asarray(got["tensor"], np.float32), x.ravel())
    chosen = next(i for i, name in enumerate(explainer.labels or ()) if name == "umbrella")
    for target in (None, chosen):
        (expected,) = explainer.explain_tensor(x, target)
        assert got["classIndex"] == expected.class_index
        assert largest(got["scores"], expected.scores) < 1e-4
        assert largest(got["heatmap"], expected.values) < 1e-4
        assert expected.values.max() > 0.99
        page.evaluate(f"document.getElementById('class-{chosen}').click()")
        page.wait(f"onnxcam.last.classIndex === {chosen}")
        got = last(page)
    assert page.evaluate(CAPTION) == f"Map for umbrella, probability {expected.scores[chosen]:.4f}"


def test_no_request_leaves_the_origin_and_the_policy_lets_none(page: Browser, picture: Path, origin: str) -> None:
    given(page, picture)
    assert {r.removeprefix(origin).split("?")[0] for r in page.requests} == {
        "/",
        "/model.json",
        "/model/model.onnx",
        "/ort/ort.wasm.min.mjs",
        "/ort/ort-wasm-simd-threaded.mjs",
        "/ort/ort-wasm-simd-threaded.wasm",
    }
    assert page.console == []
    elsewhere = origin.replace("127.0.0.1", "localhost")
    assert page.evaluate(f"fetch('{elsewhere}/model.json').then(() => 'sent', e => e.name)") == "TypeError"
    script = "document.body.appendChild(Object.assign(document.createElement('script'), {textContent: 'pwned = 1'}))"
    assert page.evaluate(f"{script}; typeof pwned") == "undefined"
    image = f"new Promise(r => Object.assign(new Image(), {{onload: r, onerror: () => r('no'), src: '{elsewhere}/x'}}))"
    assert page.evaluate(image) == "no"


def test_hostile_names_stay_text(page: Browser, picture: Path) -> None:
    given(page, picture)
    assert page.evaluate(f"{SELECTED}.firstChild.textContent") == HOSTILE
    assert page.evaluate("document.querySelector('h1').textContent") == f"{HOSTILE}.onnx"
    assert HOSTILE in page.evaluate(CAPTION)
    assert page.evaluate("[document.images.length, typeof pwned]") == [0, "undefined"]


def focused(page: Browser) -> str:
    return str(page.evaluate("document.activeElement.id"))


def test_everything_is_done_by_keyboard(page: Browser, picture: Path) -> None:
    given(page, picture)
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(focused(page))
        outlined = "[getComputedStyle(a).outlineStyle, getComputedStyle(a.closest('label') ?? a).outlineStyle]"
        assert "solid" in page.evaluate(f"{{ const a = document.activeElement; {outlined} }}"), order
    assert order == ["file", "camera", "classes", "opacity"]

    page.press("ArrowRight")
    assert page.evaluate("document.getElementById('percent').textContent") == "55 %"

    page.press("Tab", shift=True)
    first = page.evaluate("onnxcam.last.classIndex")
    ranked = page.evaluate(
        "[...onnxcam.last.scores.keys()].sort((a, b) => onnxcam.last.scores[b] - onnxcam.last.scores[a])"
    )
    for key, rank in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", len(ranked) - 1), ("Home", 0)):
        page.press(key)
        page.wait(f"onnxcam.last.classIndex === {ranked[rank]}")
        assert page.evaluate(f"+{SELECTED}.dataset.index") == ranked[rank]
        active = "document.getElementById('classes').getAttribute('aria-activedescendant')"
        assert page.evaluate(active) == f"class-{ranked[rank]}"
    page.press("ArrowDown")
    page.wait(f"onnxcam.last.classIndex === {ranked[1]}")
    page.press("Escape")
    page.wait(f"onnxcam.last.classIndex === {first}")
    assert page.evaluate(CAPTION).startswith("Predicted: ")


def test_what_has_to_be_named_for_a_screen_reader_is(page: Browser, picture: Path) -> None:
    given(page, picture)
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n["name"]["value"]) for n in tree if not n.get("ignored") and n.get("name")}
    assert {
        ("button", "Choose a picture"),
        ("button", "Use the camera"),
        ("listbox", "Classes"),
        ("slider", "Opacity of the map"),
        ("image", f"demo.png, with the map for {HOSTILE} laid over"),
    } <= named
    assert not [n for n in tree if n["role"]["value"] in ("button", "slider", "listbox") and not n["name"]["value"]]


COLOUR = """(x, y) => { const v = document.getElementById('view');
  return [...v.getContext('2d').getImageData(Math.round(x * v.width), Math.round(y * v.height), 1, 1).data]; }"""


def test_the_map_lies_where_pythons_overlay_has_it(page: Browser, picture: Path) -> None:
    given(page, picture)
    expected = np.asarray(Explainer(DEMO, threads=1)(picture).overlay(), np.float64)
    H, W = expected.shape[:2]
    for y, x in ((0.9, 0.65), (0.8, 0.5), (0.25, 0.25), (0.5, 0.9)):
        around = expected[int(y * H) - 3 : int(y * H) + 4, int(x * W) - 3 : int(x * W) + 4].mean((0, 1))
        drawn = page.evaluate(f"({COLOUR})({x}, {y})")[:3]
        assert largest(drawn, around) < 32, (y, x)  # a browser interpolates colours, Python values
    page.evaluate("const o = document.getElementById('opacity'); o.value = 0; o.dispatchEvent(new Event('input'))")
    plain = np.asarray(Image.open(picture))
    assert largest(page.evaluate(f"({COLOUR})(0.65, 0.9)")[:3], plain[int(0.9 * H), int(0.65 * W)]) < 16


def test_a_dropped_picture_is_explained_and_a_dropped_text_refused(page: Browser, picture: Path) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    drop = """(name, bytes) => { const t = new DataTransfer(); t.items.add(new File([bytes], name));
      document.getElementById('stage').dispatchEvent(new DragEvent('drop', {dataTransfer: t, bubbles: true})); }"""
    page.evaluate(f"({drop})('a.txt', new TextEncoder().encode('no picture'))")
    page.wait("!document.getElementById('alert').hidden")
    assert page.evaluate("document.getElementById('alert').textContent").startswith("a.txt is not a picture")
    page.evaluate(f"({drop})('b.png', Uint8Array.from(atob('{data}'), c => c.charCodeAt(0)))")
    page.wait("onnxcam.last")
    assert page.evaluate("document.getElementById('alert').hidden")
    assert page.evaluate("onnxcam.last.classIndex") == Explainer(DEMO, threads=1)(picture).class_index


def test_the_camera_is_explained_live_and_let_go(page: Browser) -> None:
    page.evaluate("""const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async wish => globalThis.lent = await get(wish); 0""")
    page.evaluate("document.getElementById('camera').click()")
    page.wait("onnxcam.last")
    page.evaluate("globalThis.first = onnxcam.last; 0")
    page.wait("onnxcam.last !== first")
    assert page.evaluate("document.getElementById('camera').textContent") == "Stop the camera"
    assert page.evaluate("lent.getTracks().map(t => t.readyState)") == ["live"]
    page.evaluate("document.getElementById('camera').click()")
    assert page.evaluate("lent.getTracks().map(t => t.readyState)") == ["ended"]
    assert page.evaluate("document.getElementById('camera').textContent") == "Use the camera"


PREPROCESSING = [
    *(Preprocess((40, 56), fit="squash", resample=r) for r in
      ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "opencv-bilinear")),
    Preprocess((40, 56), crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    Preprocess((33, 33), crop_pct=0.9, rounding="transformers", resample="bicubic", channels="bgr"),
    Preprocess((45, 64), crop_pct=0.9, rounding="timm", layout="nhwc"),
    Preprocess((64, 48), fit="letterbox", pad=(1, 2, 3), channels="bgr"),
    Preprocess((200, 301), fit="letterbox", resample="bicubic"),
    Preprocess((40, 56), fit="squash", resize=(30, 70), channels="gray", scale=1.0),
    Preprocess((32, 32), dtype="int8", quantization=(0.0186, -14), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    Preprocess((32, 32), dtype="uint8", scale=1.0),
    Preprocess((32, 32), dtype="float16", layout="nhwc"),
    Preprocess((32, 32), dtype="float64", fit="squash"),
]  # fmt: skip


def preprocessed(page: Browser, settings: Preprocess, pixels: Any) -> Any:
    """What the page makes of (H, W, 3) pixels."""
    H, W = pixels.shape[:2]
    rgba = np.dstack([pixels, np.full((H, W, 1), 255, np.uint8)])
    ramp = load_picture(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2))
    table = replace(settings, size=(1, 256), fit="squash", resize=None, layout="nchw")(ramp)[0]
    made = page.evaluate(f"""(() => {{
      const [rgba, raw] = {json.dumps([base64.b64encode(b).decode() for b in (rgba, table)])}
        .map(text => Uint8Array.from(atob(text), c => c.charCodeAt(0)));
      const p = {json.dumps(settings.to_json())};
      const made = onnxcam.tensorOf(p, new onnxcam.ARRAYS[p.dtype](raw.buffer), rgba, {H}, {W});
      return btoa(Array.from(new Uint8Array(made.buffer), b => String.fromCharCode(b)).join('')); }})()""")
    return np.frombuffer(base64.b64decode(made), settings.dtype)


def test_preprocessing_is_pythons_bit_for_bit(page: Browser) -> None:
    rng = np.random.default_rng(4)
    for size in ((97, 143), (29, 61)):
        pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        for settings in PREPROCESSING:
            expected, _ = settings(load_picture(pixels))
            assert np.array_equal(preprocessed(page, settings, pixels), expected.ravel()), (size, settings)


def test_a_very_tall_picture_may_differ_by_one_level_where_pillow_takes_its_axes_in_the_other_order(
    page: Browser,
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (190, 50, 3)).astype(np.uint8)
    settings = Preprocess((40, 40), dtype="uint8", scale=1.0, fit="squash")
    expected, _ = settings(load_picture(pixels))
    assert largest(preprocessed(page, settings, pixels), expected) <= 1


def test_external_weights_and_a_method_without_classes(
    chromium: Browser, picture: Path, ort_web: Path, tmp_path: Path, served: Callable[[Path], str]
) -> None:
    onnx.save(
        onnx.load(DEMO), tmp_path / "big.onnx", save_as_external_data=True, location="my weights.bin", size_threshold=0
    )
    options: dict[str, Any] = {"method": "fem", "threads": 1}
    site = write_site(tmp_path / "big.onnx", tmp_path / "site", ort_web=ort_web, **options)
    assert "model/my weights.bin" in site.files
    page = opened(chromium, served(tmp_path / "site"))
    got = given(page, picture)
    explainer = Explainer(DEMO, **options)
    (expected,) = explainer.explain_tensor(explainer.preprocess(load_picture(picture))[0])
    assert largest(got["scores"], expected.scores) < 1e-4
    assert largest(got["heatmap"], expected.values) < 1e-4
    before = page.evaluate(CAPTION)
    assert before.startswith("Map of all classes together; predicted: ")
    page.evaluate("document.querySelector('#classes li:nth-child(3)').click()")
    page.press("Tab")
    assert page.evaluate(CAPTION) == before


def test_any_static_server_will_do_in_any_folder(
    chromium: Browser, origin: str, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without the headers that allow threads, one is used."""
    folder = next(p for p in tmp_path_factory.getbasetemp().glob("site*") if (p / "site").is_dir())
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = opened(chromium, f"http://127.0.0.1:{server.server_port}/site/")
        assert page.evaluate("crossOriginIsolated") is False
        got = given(page, picture)
        server.shutdown()
    expected = Explainer(DEMO, threads=1)(picture)
    assert got["classIndex"] == expected.class_index
    assert largest(got["scores"], expected.scores) < 1e-4


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def test_a_page_without_its_model_says_what_is_wrong(
    chromium: Browser, foreign_ort: Path, served: Callable[[Path], str]
) -> None:
    write_site(DEMO, foreign_ort / "site", ort_web=foreign_ort, verify=False)
    (foreign_ort / "site" / "model" / "model.onnx").unlink()
    (foreign_ort / "site" / "ort" / "ort.wasm.min.mjs").write_text("export const env = { wasm: {} };")
    chromium.open(served(foreign_ort / "site"))
    chromium.wait("globalThis.onnxcam?.ready === false")
    said = chromium.evaluate("document.getElementById('alert').textContent")
    assert said == "model/model.onnx: the server answered 404"
    chromium.open((foreign_ort / "site" / "index.html").as_uri())
    chromium.wait("globalThis.onnxcam?.ready === false")
    assert "onnxcam web MODEL --serve" in chromium.evaluate("document.getElementById('alert').textContent")
