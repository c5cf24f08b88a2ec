"""The page of an audit with a detector, opened in Chromium: pictures with their boxes, no parts that are of classes."""

import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))  # makes `heads` importable

from heads import squares

from onnxcam import Detector
from onnxcam.audit.records import Item
from onnxcam.audit.run import Output, audit
from onnxcam.report.page import write_report

LABELS = ["<b>square", "nothing"]
TEXT = "[...document.querySelectorAll('{}')].map((e) => e.textContent)"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """No red cell; one; three, at (8, 8) and (24, 16) as red as can be, at (48, 40) less so."""
    folder = tmp_path_factory.mktemp("cells")
    pixels, items = np.zeros((64, 64, 3), np.uint8), []
    for name, cells in (("none", ()), ("one", ((3, 2, 255),)), ("three", ((1, 1, 255), (6, 5, 230)))):
        for x, y, red in cells:
            pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8, 0] = red
        Image.fromarray(pixels).save(folder / f"{name}.png")
        items.append(Item(f"{name}.png", str(folder / f"{name}.png"), expected=0))
    return items


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Browser, pictures: list[Item]) -> Browser:
    folder = tmp_path_factory.mktemp("boxes")
    detector = Detector(squares(), labels=LABELS, threads=1)
    audit(detector, pictures, folder / "out", output=Output(overlays=False, values="png16"))
    write_report([folder / "out"], folder / "report.html")
    browser.open((folder / "report.html").as_uri())
    browser.wait("document.querySelectorAll('.tile .stack').length == 3")
    return browser


def test_parts_that_are_of_classes_are_absent(page: Browser) -> None:
    assert page.evaluate(TEXT.format("#tabs button")) == ["Pictures", "Provenance"]
    hidden = "['predicted-label', 'expected-label', 'class-label'].map((id) => document.getElementById(id).hidden)"
    assert page.evaluate(hidden) == [True, False, False]


def test_every_picture_says_what_was_found(page: Browser) -> None:
    assert page.evaluate(TEXT.format(".tile .line b")) == ["no box", "<b>square", "3 \N{MULTIPLICATION SIGN} <b>square"]
    tally = [text.strip() for text in page.evaluate(TEXT.format("#tally button"))]
    assert tally[:3] == ["3pictures", "4boxes", "1without a box"]
    assert tally[3].startswith("2right") and tally[4].startswith("1wrong")


def test_boxes_are_drawn_where_they_were_found(page: Browser) -> None:
    """In shares of a picture of 64 pixels."""
    places = "[...document.querySelectorAll('.tile')].map((t) => [...t.querySelectorAll('.box')].map((b) => "
    places += "['left', 'top', 'width', 'height'].map((side) => parseFloat(b.style[side]) * 0.64)))"
    assert page.evaluate(places) == [
        [], [[24, 16, 8, 8]], [[8, 8, 8, 8], [24, 16, 8, 8], [48, 40, 8, 8]],
    ]  # fmt: skip
    layers = "[...document.querySelectorAll('.tile')].map((t) => t.querySelectorAll('canvas').length)"
    assert page.evaluate(layers) == [0, 1, 1], "nothing lies over a picture without a box"


def test_a_picture_opens_large_with_its_boxes(page: Browser) -> None:
    page.evaluate("document.querySelectorAll('.tile button')[2].click()")
    assert page.evaluate(TEXT.format("#large .box span"))[2] == "2 <b>square 0.88"
    rows = page.evaluate(TEXT.format("#large .tops li"))
    assert rows[2] == "2 <b>square0.885x 48 to 56, y 40 to 48; peak at 51, 43"
    page.evaluate("document.getElementById('large').close()")


def test_pictures_without_a_box_can_be_listed(page: Browser) -> None:
    page.evaluate("document.querySelectorAll('#tally button')[2].click()")
    assert page.evaluate(TEXT.format(".tile .name")) == ["none.png"]
    page.evaluate("document.getElementById('reset').click()")
    page.wait("document.querySelectorAll('.tile').length == 3")
    choose = "((id, value) => { const e = document.getElementById(id); e.value = value; "
    choose += "e.dispatchEvent(new Event('input', { bubbles: true })); })"
    page.evaluate(f"{choose}('class', '0')")
    assert page.evaluate(TEXT.format(".tile .name")) == ["one.png", "three.png"]
    page.evaluate(f"{choose}('sort', 'class')")
    assert page.evaluate(TEXT.format(".tile .name")) == ["three.png", "one.png"], "by the number of boxes"
    assert page.console == []
