"""The page in a real browser: what it shows, what it loads, what the keyboard does."""

import base64
import copy
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from hostile_labels import HOSTILE
from PIL import Image

from onnxcam.audit.records import Item, read_records
from onnxcam.audit.run import Output, audit
from onnxcam.explainer import Explainer
from onnxcam.render import colormap
from onnxcam.report.gather import Gathered, gather
from onnxcam.report.page import page, write_report

NAMES = "[...document.querySelectorAll('#gallery [role=listitem]')].map(t => t.querySelector('.name').textContent)"
SETTLED = "new Promise(r => requestAnimationFrame(() => setTimeout(r, 50)))"
PAINTED = "document.querySelectorAll('#gallery canvas[data-painted]').length >= {}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, audited: Path, by_layercam: Path) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report([audited, by_layercam], path)
    return path


@pytest.fixture
def opened(browser: Browser, report: Path) -> Browser:
    browser.requests.clear()
    browser.console.clear()
    browser.open(report.as_uri())
    browser.wait("performance.getEntriesByName('complete').length")
    browser.wait(PAINTED.format(5))
    return browser


def choose(browser: Browser, control: str, value: object) -> None:
    """As a user sets a control: its value, then the event."""
    browser.evaluate(
        f"(e => {{ e.value = {value!r}; for (const t of ['input', 'change']) "
        f"e.dispatchEvent(new Event(t, {{bubbles: true}})); }})(document.getElementById({control!r}))"
    )
    browser.evaluate(SETTLED)


def press(browser: Browser, key: str) -> None:
    if key == "Enter":
        event = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        browser.send("Input.dispatchKeyEvent", type="keyDown", text="\r", **event)
        browser.send("Input.dispatchKeyEvent", type="keyUp", **event)
    else:
        browser.press(key)
    browser.evaluate(SETTLED)


def shot(browser: Browser, selector: str) -> np.ndarray:
    """The pixels (H, W, 3) of an element as they are on the screen."""
    box = browser.evaluate(
        f"(b => ({{x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}}))"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    data = browser.send("Page.captureScreenshot", clip=box)["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)


def test_nothing_is_loaded_and_no_name_becomes_markup(opened: Browser, report: Path, audited: Path) -> None:
    assert [r for r in opened.requests if not r.startswith("data:")] == [report.as_uri()]
    for tab in ("classes", "confusion", "metrics", "provenance", "pictures"):
        opened.evaluate(f"document.getElementById('tab-{tab}').click()")
    press_all = """for (const b of document.querySelectorAll('#gallery button')) {
      b.click();
      document.getElementById('close').click();
    }"""
    opened.evaluate(press_all)
    assert opened.evaluate("window.hacked") is None
    assert opened.console == []
    assert (
        opened.evaluate("document.querySelectorAll('main i:not(.key i), main svg:not(figure svg), main b > *').length")
        == 0
    )
    shown = opened.evaluate(
        "[...document.querySelectorAll('#class option')].map(o => o.textContent.replace(/ \\(\\d+\\)$/, ''))"
    )
    labels = {r["label"] for r in read_records(audited) if r["status"] == "ok"}
    assert set(shown[1:]) == labels <= set(HOSTILE) and len(labels) > 3


def test_the_page_refuses_scripts_that_it_did_not_bring(opened: Browser) -> None:
    attack = """(() => {
      const script = document.createElement('script');
      try { script.textContent = 'window.hacked = 7'; document.body.append(script); } catch (error) {}
      try { document.body.innerHTML += '<img src=x onerror="window.hacked = 8">'; } catch (error) { return 'refused'; }
    })()"""
    assert opened.evaluate(attack) == "refused"
    assert opened.evaluate(f"{SETTLED}.then(() => window.hacked)") is None
    violated = """new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective), {once: true});
      fetch('http://127.0.0.1:9').catch(() => setTimeout(() => done('asked'), 500));
    })"""
    assert opened.evaluate(violated) == "connect-src"
    opened.console.clear()


def test_filters_show_the_pictures_that_the_records_say(opened: Browser, audited: Path) -> None:
    records = list(read_records(audited))
    good = [r for r in records if r["status"] == "ok"]

    def expect(wanted: list[dict[str, Any]]) -> None:
        assert opened.evaluate(NAMES) == [r["name"] for r in wanted]
        opened.evaluate("document.getElementById('reset').click()")
        opened.evaluate(SETTLED)

    expect(records)
    index = good[0]["class_index"]
    choose(opened, "class", str(index))
    expect([r for r in good if r["class_index"] == index])
    choose(opened, "verdict", "wrong")
    wrong = [r for r in good if not r["correct"]]
    assert 0 < len(wrong) < len(good)
    expect(wrong)
    choose(opened, "expected", "4")
    choose(opened, "verdict", "right")
    expect([r for r in good if r["expected_index"] == 4 and r["correct"]])
    choose(opened, "state", "error")
    expect([r for r in records if r["status"] == "error"])
    choose(opened, "state", "missed")
    missed = [r for r in good if r["localisation"] and r["localisation"]["pointing"] is False]
    assert missed
    expect(missed)
    choose(opened, "text", "<I>7")
    expect([r for r in records if "<i>7" in r["name"]])
    choose(opened, "least", "0.5")
    choose(opened, "most", "0.9995")
    inside = [r for r in good if 0.5 <= r["probability"] <= 0.9995]
    assert 0 < len(inside) < len(good)
    expect(inside)
    choose(opened, "sort", "low")
    names = [r["name"] for r in sorted(good, key=lambda r: r["probability"])]
    assert opened.evaluate(NAMES)[: len(good)] == names


def test_what_nothing_is_known_of_counts_neither_as_right_nor_as_wrong(
    tmp_path: Path, browser: Browser, half_known: Path
) -> None:
    """Of twelve pictures two are right, one wrong, two broken: two of three, not two of twelve nor two of ten."""
    path = tmp_path / "half.html"
    write_report([half_known], path)
    browser.open(path.as_uri())
    browser.wait("performance.getEntriesByName('complete').length")
    totals = browser.evaluate(
        "[...document.querySelectorAll('#tally button')].map(b => [...b.children].map(c => c.textContent).join(' '))"
    )
    assert totals[:4] == ["12 pictures", "2 right, 66.7 % of 3", "1 wrong, 33.3 % of 3", "7 no known class expected"]
    assert totals[-1] == "2 not explained"
    browser.evaluate("document.querySelectorAll('#tally button')[3].click()")
    browser.evaluate(SETTLED)
    good = [r for r in read_records(half_known) if r["status"] == "ok"]
    assert browser.evaluate(NAMES) == [r["name"] for r in good if r["correct"] is None]
    said = browser.evaluate("[...document.querySelectorAll('#gallery button')].map(b => b.getAttribute('aria-label'))")
    assert sum("expected unicorn, unknown to the model" in text for text in said) == 1
    assert not any("right" in text or "wrong" in text for text in said)
    browser.evaluate("document.getElementById('tab-confusion').click()")
    about = browser.evaluate("document.getElementById('confusion-about').textContent")
    assert "Left out, since no known class is expected: 7 pictures." in about
    browser.evaluate("document.getElementById('tab-classes').click()")
    index = next(r["class_index"] for r in good if r["correct"])
    members = [r["correct"] for r in good if r["class_index"] == index]
    cards = browser.evaluate("[...document.querySelectorAll('#class-cards small')].map(e => e.textContent)")
    judged = [c for c in members if c is not None]
    assert len(judged) < len(members)
    share = f"{100 * sum(judged) / len(judged):.1f} % of {len(judged)} right"
    assert f"{len(members)} pictures, {share}" in cards


def test_where_no_expected_class_is_known_there_is_no_rate(
    tmp_path: Path, browser: Browser, explainer: Explainer, items: list[Item]
) -> None:
    some = [replace(item, expected="unicorn") for item in items[:3]]
    audit(explainer, some, tmp_path / "out", output=Output(overlays=False, values="npy"), workers=1)
    written = write_report([tmp_path / "out"], tmp_path / "none.html")
    browser.open((tmp_path / "none.html").as_uri())
    browser.wait("performance.getEntriesByName('complete').length")
    text = browser.evaluate("document.getElementById('tally').textContent")
    assert "%" not in text and "right" not in text and "wrong" not in text
    assert written.notices == (browser.evaluate("document.getElementById('notices').textContent"),)
    assert "(`unicorn`): 3." in written.notices[0]


def test_a_cell_of_the_confusion_leads_to_its_pictures(opened: Browser, audited: Path) -> None:
    good = [r for r in read_records(audited) if r["status"] == "ok"]
    wrong = next(r for r in good if not r["correct"])
    pair = (wrong["expected_index"], wrong["top"][0]["index"])
    members = [r["name"] for r in good if (r["expected_index"], r["top"][0]["index"]) == pair]
    opened.evaluate("document.getElementById('tab-confusion').click()")
    label = f"of {HOSTILE[pair[0]]} predicted as {HOSTILE[pair[1]]}".replace("\x00", "\ufffd")
    number = opened.evaluate(
        "(b => { b.click(); return Number(b.textContent); })([...document.querySelectorAll('.matrix button')]"
        f".find(b => b.getAttribute('aria-label').endsWith({label!r})))"
    )
    opened.evaluate(SETTLED)
    assert number == len(members) and opened.evaluate(NAMES) == members


def test_the_slider_blends_the_map_over_the_picture(opened: Browser, audited: Path) -> None:
    gathered = gather([audited])
    picture, (layer,) = gathered.images[0][2]
    press(opened, "Tab")
    opened.evaluate("document.querySelectorAll('#gallery button')[2].click()")
    opened.wait("document.querySelector('#large-frame canvas[data-painted]')")
    opened.evaluate("document.activeElement.blur()")
    shown = {}
    for percent in (0, 50, 100):
        choose(opened, "large-opacity", percent)
        shown[percent] = shot(opened, "#large-frame .stack")
    height, width = shown[0].shape[:2]

    def enlarged(data: str, mode: str) -> np.ndarray:
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert(mode)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    inner = np.s_[8:-8, 8:-8]
    original = enlarged(picture, "RGB").astype(float)
    assert np.abs(shown[0] - original)[inner].mean() < 3
    heat = colormap("jet")[enlarged(layer["map"], "L")].astype(float)
    assert np.abs(shown[100] - heat)[inner].mean() < 4
    assert np.abs(heat - original)[inner].mean() > 40, "the two are too alike to tell"
    np.testing.assert_allclose(shown[50][inner], ((shown[0] + shown[100]) / 2)[inner], atol=1.5)


def test_colours_and_method_change_what_is_shown(opened: Browser) -> None:
    tile = "#gallery [role=listitem]:nth-child(3) .frame"
    before = shot(opened, tile)
    choose(opened, "palette", "gray")
    opened.wait(PAINTED.format(5))
    grey = shot(opened, tile)
    assert np.abs(before - grey).mean() > 10
    choose(opened, "variant", "1")
    opened.wait("document.querySelectorAll('#gallery img.over').length >= 5")
    opened.evaluate("Promise.all([...document.images].map(i => i.decode()))")
    assert np.abs(grey - shot(opened, tile)).mean() > 5
    assert "layercam" in opened.evaluate("document.getElementById('variant').selectedOptions[0].textContent")


def test_all_can_be_done_from_the_keyboard(opened: Browser) -> None:
    focused = "document.activeElement.closest('[role=listitem]')?.querySelector('.name').textContent"
    opened.evaluate("document.getElementById('variant').focus()")
    press(opened, "Tab")
    names = opened.evaluate(NAMES)
    assert opened.evaluate(focused) == names[0]
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for key, position in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 11),
        ("ArrowRight", 11),
        ("Home", 0),
    ):
        press(opened, key)
        assert opened.evaluate(focused) == names[position], key
    columns = opened.evaluate(
        "new Set([...document.querySelectorAll('#gallery [role=listitem]')].map(t => t.getBoundingClientRect().x)).size"
    )
    press(opened, "ArrowDown")
    assert opened.evaluate(focused) == names[columns] and columns > 2
    press(opened, "Enter")
    large = "document.getElementById('large').open && document.getElementById('large-name').textContent"
    assert opened.evaluate(large) == names[columns]
    press(opened, "ArrowRight")
    assert opened.evaluate(large) == names[columns + 1]
    press(opened, "Escape")
    assert opened.evaluate(large) is False
    assert opened.evaluate(focused) == names[columns + 1], "the focus is where the large view was left"
    opened.evaluate("document.getElementById('tab-pictures').focus()")
    press(opened, "ArrowRight")
    assert opened.evaluate("document.getElementById('panel-classes').hidden") is False


def test_what_is_seen_is_said(opened: Browser, audited: Path) -> None:
    """Every picture's name for assistive technology tells class, score, verdict; nothing interactive is nameless."""
    record = next(r for r in read_records(audited) if r["status"] == "ok" and not r["correct"])
    said = opened.evaluate("[...document.querySelectorAll('#gallery button')].map(b => b.getAttribute('aria-label'))")
    mine = next(text for text in said if text.startswith(record["name"]))
    assert f"{record['probability']:.3f}" in mine and "prediction wrong, expected" in mine
    nameless = """[...document.querySelectorAll('button, input, select')].filter(e => e.checkVisibility() &&
      !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
          .map(e => e.outerHTML)"""
    assert opened.evaluate(nameless) == []
    assert opened.evaluate("document.getElementById('found').getAttribute('role')") == "status"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_in_dark(opened: Browser, scheme: str) -> None:
    """Contrast of WCAG 2.1: 4.5 for text, of every colour that text has, on its background."""
    opened.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        colors = opened.evaluate("""(() => {
          const style = getComputedStyle(document.documentElement);
          const rgb = name => {
            const canvas = document.createElement('canvas').getContext('2d');
            canvas.fillStyle = style.getPropertyValue(name);
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const names = ['paper', 'sheet', 'ink', 'soft', 'accent', 'right', 'wrong', 'flag'];
          return Object.fromEntries(names.map(n => [n, rgb('--' + n)]));
        })()""")
    finally:
        opened.send("Emulation.setEmulatedMedia", features=[])

    def luminance(rgb: list[int]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert (luminance(colors["paper"]) > 0.5) == (scheme == "light")
    for ground in ("paper", "sheet"):
        for name in ("ink", "soft", "accent", "right", "wrong", "flag"):
            high, low = sorted((luminance(colors[ground]), luminance(colors[name])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} on {ground}"


def test_of_five_thousand_pictures_only_those_on_the_screen_exist(
    tmp_path: Path, browser: Browser, audited: Path
) -> None:
    gathered = gather([audited])
    report: dict[str, Any] = copy.deepcopy(gathered.report)
    few, images = report["pictures"], [image for chunk in gathered.images for image in chunk]
    report["pictures"] = [{**few[i % len(few)], "name": f"{i:05}"} for i in range(5000)]
    size = report["chunk"]
    chunks = [[images[i % len(few)] for i in range(start, min(start + size, 5000))] for start in range(0, 5000, size)]
    path = tmp_path / "many.html"
    path.write_bytes(page(Gathered(report, chunks)))
    browser.open(path.as_uri())
    browser.wait("performance.getEntriesByName('complete').length")
    tiles = "document.querySelectorAll('#gallery [role=listitem]').length"
    assert 0 < browser.evaluate(tiles) < 60
    browser.evaluate("document.querySelector('#gallery button').focus()")
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    browser.wait("[...document.querySelectorAll('#gallery .name')].some(n => n.textContent === '04999')")
    assert browser.evaluate(tiles) < 60
    last = "#gallery [aria-posinset='4999']"
    browser.wait(f'document.querySelector("{last} canvas[data-painted], {last} .fault")')
    focused = "document.activeElement.closest('[role=listitem]')?.querySelector('.name').textContent"
    assert browser.evaluate(focused) == "00000", "the focus outlives its row"
    press(browser, "ArrowRight")
    assert browser.evaluate(focused) == "00001" and browser.evaluate("scrollY") < 2000
    choose(browser, "text", "04321")
    assert browser.evaluate(NAMES) == ["04321"]


def test_what_is_printed_has_every_picture_and_every_part(opened: Browser) -> None:
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert opened.evaluate("document.querySelectorAll('#gallery .frame:not(:empty)').length") == 12
        parts = opened.evaluate(
            "[...document.querySelectorAll('main > section')].filter(s => s.checkVisibility()).map(s => s.id)"
        )
        assert parts == ["panel-pictures", "panel-classes", "panel-confusion", "panel-metrics", "panel-provenance"]
        assert opened.evaluate("document.querySelector('.row').checkVisibility()") is False
    finally:
        opened.send("Emulation.setEmulatedMedia", media="")
        opened.evaluate("dispatchEvent(new Event('afterprint'))")


def test_a_narrow_screen_scrolls_in_one_direction_only(opened: Browser) -> None:
    opened.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        for tab in ("pictures", "classes", "confusion", "metrics", "provenance"):
            opened.evaluate(f"document.getElementById('tab-{tab}').click()")
            opened.evaluate(SETTLED)
            assert opened.evaluate("document.documentElement.scrollWidth") <= 360, tab
    finally:
        opened.send("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)


def test_a_target_that_is_no_class_is_named_in_words(tmp_path: Path, browser: Browser, audited: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(audited, folder)
    records = list(read_records(folder))
    for record in records:
        record["picture"] = str((audited.resolve() / record["picture"]).resolve())
    records[0] |= {"class_index": None, "label": "a box <b>of</b> no class", "top": [], "expected_index": None}
    records[0] |= {"correct": None, "probability": None, "score": 3.25}
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write_report([folder], tmp_path / "r.html")
    browser.console.clear()
    browser.open((tmp_path / "r.html").as_uri())
    browser.wait("performance.getEntriesByName('complete').length")
    browser.evaluate("document.querySelector('#gallery button').click()")
    assert browser.evaluate("document.querySelector('#gallery b').textContent") == records[0]["label"]
    assert records[0]["label"] in browser.evaluate("document.getElementById('large-facts').textContent")
    for tab in ("classes", "confusion"):
        browser.evaluate(f"document.getElementById('close').click(); document.getElementById('tab-{tab}').click()")
    assert browser.console == []
