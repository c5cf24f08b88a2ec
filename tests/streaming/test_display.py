"""What a notebook and a table show of an explanation."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from onnxcam import BadPicture, Explainer
from onnxcam.errors import PictureError
from onnxcam.render import encoded


class Page(HTMLParser):
    """The elements, the attributes of the picture and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.image: dict[str, str | None] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "img":
            self.image = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def test_a_notebook_shows_the_overlay_above_its_caption_and_the_label_is_text(folder: Path) -> None:
    explanation = Explainer("colours.onnx", threads=1)("00.png")
    bundle = explanation._repr_mimebundle_()
    page = Page(bundle["text/html"])
    assert page.elements == ["figure", "img", "figcaption", "b"]  # the label's own <b> is no element
    shown = f"<b>red</b> & scarlet {explanation.probability:.1%}: gradcam at a"
    assert page.text == shown
    assert page.image["alt"] == bundle["text/plain"] == repr(explanation)
    assert (page.image["width"], page.image["height"]) == ("24", "16")
    overlay = np.asarray(explanation.overlay()).astype(int)
    assert np.array_equal(decoded(bundle["image/png"]), overlay)
    kind, _, data = (page.image["src"] or "").partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data) == encoded(explanation.overlay(), ".jpg")


def test_a_large_picture_is_shown_small_and_a_warning_stands_in_the_caption(folder: Path) -> None:
    Image.new("RGB", (1600, 400), (0, 250, 0)).save("wide.png")
    explanation = Explainer("colours.onnx", threads=1)("wide.png", "blue")
    bundle = explanation._repr_mimebundle_()
    assert decoded(bundle["image/png"]).shape == (160, 640, 3)
    assert Page(bundle["text/html"]).text.endswith("the map is empty: no cell of `a` speaks for this class")


def test_without_a_picture_the_map_alone_is_shown(folder: Path) -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    x[0, 0, 2, 5] = 1
    (explanation,) = Explainer("colours.onnx", threads=1).explain_tensor(x, 0)
    shown = decoded(explanation._repr_mimebundle_()["image/png"])
    assert shown.shape == (8, 8, 3)
    assert shown[2, 5].tolist() == [128, 0, 0] and shown[7, 0].tolist() == [0, 0, 128]  # jet's two ends


def test_an_explainer_is_shown_in_a_few_escaped_lines(folder: Path) -> None:
    explainer = Explainer("colours.onnx", threads=1)
    page = Page(explainer._repr_html_())
    assert set(page.elements) == {"table", "tr", "th", "td"}
    rows = re.findall(r"<tr>.*?</tr>", explainer._repr_html_())
    cells = {Page(row).elements.count("td") for row in rows}
    assert cells == {1} and len(rows) == 5
    assert "<b>red</b> & scarlet, green, blue" in page.text and "colours.onnx" in page.text


def test_a_flat_record_holds_scalars_only_and_the_values_of_the_whole_one(folder: Path) -> None:
    explanation = Explainer("colours.onnx", threads=1)("01.png", 0)
    row, whole = explanation.record(flat=True), explanation.record()
    assert all(value is None or isinstance(value, str | int | float | bool) for value in row.values())
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    same = ("class_index", "label", "score", "probability", "layer", "method", "is_empty", "has_nan")
    assert {key: row[key] for key in same} == {key: whole[key] for key in same}
    assert [row["height"], row["width"]] == whole["size"] == [17, 25]
    assert [row[f"region_{name}"] for name in ("x0", "y0", "x1", "y1")] == whole["region"] == [0, 0, 25, 17]
    assert [row["peak_x"], row["peak_y"]] == whole["peak"]
    best = whole["top"][0]
    assert (row["predicted_index"], row["predicted_label"], row["predicted_score"]) == (1, "green", best["score"])
    facts = whole["provenance"]
    assert (row["source"], row["picture_sha256"]) == ("01.png", facts["picture"]["sha256"])
    assert (row["model"], row["model_sha256"]) == ("colours.onnx", facts["model"]["sha256"])
    assert row["error"] is None and row["warning"] is None


def test_a_flat_record_of_a_tensor_has_the_same_keys(folder: Path) -> None:
    explainer = Explainer("colours.onnx", threads=1)
    (tensor,) = explainer.explain_tensor(np.zeros((1, 3, 8, 8), np.float32))
    row = tensor.record(flat=True)
    assert list(row) == list(explainer("00.png").record(flat=True))
    assert row["source"] is None and row["is_empty"] and row["warning"].startswith("the map is empty")


def test_the_row_of_a_bad_picture_fits_the_others(folder: Path) -> None:
    bad = BadPicture("x.png", PictureError("x.png: no such file", "check the path"))
    row = bad.record(flat=True)
    assert row == {"source": "x.png", "error": "x.png: no such file"}
    assert row.keys() <= Explainer("colours.onnx", threads=1)("00.png").record(flat=True).keys()
