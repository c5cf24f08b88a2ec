"""What the page is given, against the records and against maps made anew."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_labels import HOSTILE
from PIL import Image

from onnxcam.audit.records import Item, read_records
from onnxcam.cli import main
from onnxcam.errors import UsageError
from onnxcam.explainer import Explainer
from onnxcam.report.gather import gather
from onnxcam.report.page import page, write_report


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def images_of(gathered: Any, index: int) -> Any:
    chunk = gathered.report["chunk"]
    return gathered.images[index // chunk][index % chunk]


def block_means(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every cell the mean of the pixels whose middle it covers: an oracle for a box filter that shrinks."""
    rows, columns = (
        (np.arange(n + 1) * size / n + 0.5).astype(int) for n, size in zip((height, width), values.shape, strict=True)
    )
    cells = [[values[a:b, c:d].mean() for c, d in pairwise(columns)] for a, b in pairwise(rows)]
    return np.array(cells)


def test_every_record_is_an_entry_with_its_scores_and_errors(audited: Path) -> None:
    records = list(read_records(audited))
    entries = gather([audited]).report["pictures"]
    assert [e["name"] for e in entries] == [r["name"] for r in records] and len(records) == 12
    for record, entry in zip(records, entries, strict=True):
        if record["status"] == "error":
            assert entry["error"] == record["error"]
            continue
        (result,) = entry["results"]
        assert (result["explained"], result["score"]) == (record["class_index"], record["probability"])
        assert (result["predicted"] == entry["expected"]) == record["correct"]
        assert result["top"] == [[c["index"], c["score"]] for c in record["top"]]
    assert Counter(e["error"] is not None for e in entries) == {False: 10, True: 2}


def test_an_embedded_map_is_the_explanation_itself_in_eight_bits(
    audited: Path, explainer: Explainer, items: list[Item]
) -> None:
    gathered = gather([audited])
    for i in (0, 7):
        explanation = explainer(items[i].path)
        x0, y0, x1, y1 = explanation.region
        _, (layer,) = images_of(gathered, i)
        found = pixels(layer["map"])[:, :, 0]
        assert max(found.shape) == 48
        truth = block_means(explanation.values[y0:y1, x0:x1].astype(float), *found.shape)
        np.testing.assert_allclose(found / 255, truth, atol=0.5 / 255 + 1e-4)


def test_an_embedded_picture_is_the_picture(audited: Path, items: list[Item]) -> None:
    shown, _ = images_of(gather([audited]), 3)
    original = np.asarray(Image.open(items[3].path), float)
    assert pixels(shown).shape == original.shape  # smaller than the limit: not resized
    assert np.abs(pixels(shown) - original).mean() < 6  # WebP loses a little; another picture would be 40 away


def test_the_mean_map_of_a_class_is_the_mean_of_its_maps(
    audited: Path, explainer: Explainer, items: list[Item]
) -> None:
    report = gather([audited]).report
    maps: dict[int, list[np.ndarray]] = {}
    for item in items[:10]:
        explanation = explainer(item.path)
        assert not explanation.warnings
        maps.setdefault(explanation.class_index, []).append(block_means(explanation.values.astype(float), 48, 48))
    (means,) = report["means"]
    assert {int(k) for k in means["classes"]} == set(maps) and len(maps) > 2
    top = max(np.mean(several, 0).max() for several in maps.values())
    assert means["top"] == pytest.approx(top, abs=1e-4)
    for index, several in maps.items():
        found = pixels(means["classes"][str(index)]["map"])[:, :, 0] / 255 * top
        np.testing.assert_allclose(found, np.mean(several, 0), atol=0.5 / 255 + 2e-4)


def test_an_expected_class_that_the_model_lacks_is_said_and_judges_nothing(half_known: Path) -> None:
    gathered = gather([half_known])
    asked = [(e["expected"], e["asked"]) for e in gathered.report["pictures"] if e["asked"] is not None]
    assert asked == [(None, "unicorn")]
    assert gathered.notices == (
        "Pictures whose expected class the model does not have (`unicorn`): 1. They are neither right nor wrong.",
    )


def test_what_any_of_several_audits_expects_is_known(half_known: Path, audited: Path) -> None:
    truth = [r.get("expected_index") for r in read_records(audited)]
    for folders in ([half_known, audited], [audited, half_known]):
        gathered = gather(folders)
        assert [e["expected"] for e in gathered.report["pictures"]] == truth
        assert gathered.notices == ()


def test_mistakes_have_means_of_their_own(audited: Path) -> None:
    wrong = Counter(
        (r["expected_index"], r["top"][0]["index"])
        for r in read_records(audited)
        if r["status"] == "ok" and not r["correct"]
    )
    (means,) = gather([audited]).report["means"]
    assert set(means["pairs"]) == {f"{e},{p}" for e, p in wrong} and len(wrong) > 2


def test_of_too_many_pictures_the_mistakes_are_embedded_first(audited: Path) -> None:
    records = list(read_records(audited))
    good = {i: r for i, r in enumerate(records) if r["status"] == "ok"}
    missed = {i for i, r in good.items() if r["localisation"] and r["localisation"]["pointing"] is False}
    wrong = missed | {i for i, r in good.items() if not r["correct"] or r["warnings"]}
    gathered = gather([audited], embed=len(wrong) + 1)
    embedded = {i for i in range(len(records)) if images_of(gathered, i) is not None}
    assert wrong < embedded and len(embedded) == len(wrong) + 1 < len(records)
    assert any(f"{len(records) - len(embedded)} pictures are listed" in notice for notice in gathered.notices)
    assert all(entry["name"] for entry in gathered.report["pictures"])


def test_a_picture_that_changed_or_went_is_not_shown_as_what_was_explained(
    tmp_path: Path, audited: Path, items: list[Item]
) -> None:
    folder = tmp_path / "audit" / "out"
    shutil.copytree(audited, folder)
    records = list(read_records(folder))
    for i in (0, 1):
        copy = tmp_path / "audit" / f"{i}.png"
        shutil.copy(items[i].path, copy)
        records[i]["picture"] = f"../{i}.png"
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert gather([folder]).notices == ()
    Image.new("RGB", (160, 128)).save(tmp_path / "audit" / "0.png")
    (tmp_path / "audit" / "1.png").unlink()
    gathered = gather([folder])
    assert images_of(gathered, 0) == images_of(gathered, 1) == [None, [None]]
    assert gathered.notices == (
        "1 pictures are no longer where the run found them: they are shown as the run drew them, if it did.",
        "1 pictures have changed since the run: they are shown as the run drew them, if it did.",
    )


def test_files_outside_the_audit_and_damaged_ones_are_not_shown(tmp_path: Path, audited: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(audited, folder)
    records = list(read_records(folder))
    shutil.copy(folder / records[0]["files"]["values"], tmp_path / "foreign.npy")
    records[0]["files"]["values"] = "../foreign.npy"
    (folder / records[1]["files"]["values"]).write_bytes(b"\x93NUMPY no more")
    np.save(folder / records[2]["files"]["values"], np.array([{"a": 1}], dtype=object), allow_pickle=True)
    base = audited.resolve()
    for record in records:
        record["picture"] = str((base / record["picture"]).resolve())
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    gathered = gather([folder])
    assert [images_of(gathered, i)[1] for i in range(3)] == [[None]] * 3
    assert images_of(gathered, 3)[1] != [None]
    assert gathered.notices == ("Of 2 pictures a file in the output folder is damaged and not shown.",)


def test_runs_of_the_same_pictures_are_joined(audited: Path, by_layercam: Path) -> None:
    gathered = gather([audited, by_layercam])
    assert [v["method"] for v in gathered.report["variants"]] == ["gradcam", "layercam"]
    _, (first, second) = images_of(gathered, 4)
    assert first.keys() == {"map"} and second.keys() == {"overlay"}
    assert len(gathered.report["pictures"]) == 12
    assert "1 classes" not in gathered.report["subtitle"] and "gradcam, layercam" in gathered.report["subtitle"]


def test_runs_of_different_classes_are_refused(tmp_path: Path, audited: Path, by_layercam: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(by_layercam, other)
    header = json.loads((other / "run.json").read_text())
    header["labels"][0] = "something else"
    (other / "run.json").write_text(json.dumps(header))
    with pytest.raises(UsageError, match="different classes"):
        gather([audited, other])


class Markup(HTMLParser):
    """Tags, and what stands in scripts by their id."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.data.append("")

    def handle_data(self, data: str) -> None:
        if self.data:
            self.data[-1] += data


def test_labels_and_names_cannot_leave_their_strings(audited: Path) -> None:
    gathered = gather([audited], title="</title><script>window.hacked = 9</script>")
    parser = Markup()
    parser.feed(page(gathered).decode())
    scripts = [(attributes.get("id"), data) for (tag, attributes), data in zip(parser.tags, parser.data, strict=True)
               if tag == "script"]  # fmt: skip
    assert [name for name, _ in scripts] == ["report", None, "images-0"]
    assert json.loads(scripts[0][1]) == json.loads(json.dumps(gathered.report))
    assert set(gathered.report["classes"].values()) <= set(HOSTILE) and len(gathered.report["classes"]) > 5
    assert not [t for t, _ in parser.tags if t in ("img", "svg", "b", "i", "iframe", "object")]
    assert [t for t, _ in parser.tags].count("title") == 1
    text = page(gathered).decode()
    assert not re.search(r"""(src|href)=["'](?!data:,|#panels)""", text), "something would be loaded"


def test_the_same_audit_makes_the_same_bytes(audited: Path, by_layercam: Path) -> None:
    assert page(gather([audited, by_layercam])) == page(gather([audited, by_layercam]))


def test_the_command_writes_the_file_and_says_how_large(
    tmp_path: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(
        json.dumps({"model": {}, "settings": {}, "metrics": [], "methods": [], "maps": [], "warnings": [], "notes": []})
    )
    target = tmp_path / "r.html"
    assert main(["report", str(audited), "-o", str(target), "--evaluation", str(evaluation), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pictures"] == 12 and said["bytes"] == target.stat().st_size


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nosuch", "{}: no such folder", "check the path"),
        ("photo.png", "{} is a file, not the folder of an audit", "name its folder"),
        ("photo.png/out", "{}: no such folder", "check the path"),
        ("empty", "{} holds no audit: there is no `run.json` in it", "`onnxcam explain MODEL PICTURES -o FOLDER`"),
        ("other", "{} holds no audit: `run.json` is not of the format `onnxcam audit 1`", "`onnxcam explain MODEL"),
        ("folder", "{}/run.json cannot be read: Is a directory", "check the path"),
    ],
)
def test_what_a_folder_lacks_of_an_audit_is_said(
    name: str, message: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "run.json").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"format": "another 1"}')
    path = tmp_path / name
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"error: {message.format(path)} hint: ") and hint in said.partition("hint: ")[2]
    assert not (tmp_path / "r.html").exists()


def test_what_is_no_audit_and_no_evaluation_is_refused(
    tmp_path: Path, audited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "r.html")
    assert main(["report", str(tmp_path), "-o", target]) == 2
    assert "holds no audit" in capsys.readouterr().err
    for text in ("{}", "[", "[" * 100_000, '{"metrics": NaN}'):
        (tmp_path / "e.json").write_text(text)
        assert main(["report", str(audited), "-o", target, "--evaluation", str(tmp_path / "e.json")]) == 2
        assert "is not an evaluation" in capsys.readouterr().err
    assert main(["report", str(audited), "-o", str(tmp_path / "r.pdf")]) == 6
    with pytest.raises(UsageError, match="pictures of 3 pixels"):
        write_report([audited], target, side=3)
    assert not Path(target).exists()
