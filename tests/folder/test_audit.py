"""What a run leaves: records that say what single calls say, files that are whole, and nothing done twice."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kill import MODEL, contents
from PIL import Image

from onnxcam.audit.folder import OutputFolder
from onnxcam.audit.records import Item, read_records, read_run
from onnxcam.audit.run import Output, Summary, audit
from onnxcam.audit.sources import Sources
from onnxcam.cli import main
from onnxcam.errors import ModelError, OutputError, UsageError
from onnxcam.explainer import Explainer
from onnxcam.metrics.localisation import boxes_mask, energy_pointing_game, pointing_game


def run(explainer: Explainer, pictures: Path, out: Path, **options: object) -> Summary:
    sources = Sources()
    sources.add_inputs([str(pictures)], recursive=True, without=out)
    return audit(explainer, sources.items, out, **options)  # type: ignore[arg-type]


def test_records_and_files_say_what_single_calls_say(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(explainer, pictures, out, output=Output(values="npy"), batch=4)
    assert (done.pictures, done.explained, done.before, done.errors) == (6, 6, 0, 0)
    records = list(read_records(out))
    assert [r["name"] for r in records] == [f"{letter}.png" for letter in "abcdef"]
    for record in records:
        path = pictures / record["name"]
        assert record["picture"] == f"../pictures/{record['name']}"
        alone = explainer(path)
        kept = alone.record()
        del kept["provenance"]
        for field in kept.keys() - {"score", "probability", "top"}:
            assert record[field] == kept[field], field
        assert record["score"] == pytest.approx(kept["score"], rel=1e-5)
        assert record["probability"] == pytest.approx(kept["probability"], rel=1e-5)
        assert [c["index"] for c in record["top"]] == [c.index for c in alone.top]
        assert record["sha256"] == alone.provenance["picture"]["sha256"]
        assert record["map"] == {
            "mean": pytest.approx(alone.values.mean(dtype=np.float64), rel=1e-5),
            "half": pytest.approx((alone.values >= 0.5 * alone.values.max()).mean(), abs=1e-3),
            "raw_min": pytest.approx(alone.raw.min(), rel=1e-4),
            "raw_max": pytest.approx(alone.raw.max(), rel=1e-4),
        }
        np.testing.assert_allclose(np.load(out / record["files"]["values"]), alone.values, atol=1e-5)
        overlay = np.asarray(Image.open(out / record["files"]["overlay"])).astype(int)
        assert np.abs(overlay - np.asarray(alone.overlay()).astype(int)).max() <= 1
    header = read_run(out)
    assert header["provenance"] == {
        k: v for k, v in explainer(pictures / "a.png").provenance.items() if k not in ("picture", "target", "found")
    }
    assert header["labels"] == list(explainer.labels or ()) and header["settings"]["values"] == "npy"


def test_16_bit_values_are_rounded_to_65535ths_and_jpeg_overlays_are_jpeg(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    run(explainer, pictures, tmp_path / "out", output=Output(values="png16", overlay_format="jpg"), batch=1)
    for record in read_records(tmp_path / "out"):
        with Image.open(tmp_path / "out" / record["files"]["values"]) as image:
            assert image.mode == "I;16"
            found = np.asarray(image)
        np.testing.assert_array_equal(found, np.rint(explainer(pictures / record["name"]).values * np.float32(65535)))
        with Image.open(tmp_path / "out" / record["files"]["overlay"]) as image:
            assert image.format == "JPEG" and image.size == (80, 60)


def test_without_overlays_and_values_only_records_are_left_and_they_are_the_same(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    run(explainer, pictures, tmp_path / "all")
    run(explainer, pictures, tmp_path / "bare", output=Output(overlays=False))
    assert sorted(contents(tmp_path / "bare")) == ["records.jsonl", "run.json"]
    for one, other in zip(read_records(tmp_path / "all"), read_records(tmp_path / "bare"), strict=True):
        assert one | {"files": None} == other | {"files": None}
        assert other["files"] == {"overlay": None, "values": None}


@pytest.mark.parametrize("options", [{"runners": 3, "batch": 1}, {"runners": 2, "workers": 1}, {"batch": 5}])
def test_however_the_work_is_shared_out_the_folder_is_the_same(
    explainer: Explainer, pictures: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    (pictures / "d.png").write_bytes(b"")
    run(explainer, pictures, tmp_path / "one", runners=1, batch=6, workers=3)
    run(explainer, pictures, tmp_path / "other", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_targets_and_boxes_of_a_manifest(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    alone = explainer(pictures / "a.png")
    x, y = alone.peak
    other = (alone.class_index + 1) % 10
    rows = [
        {"picture": "a.png", "target": alone.label, "boxes": [[0, 0, x + 1, y + 1]]},
        {"picture": "a.png", "target": str(alone.class_index), "boxes": [[x + 2, 0, x + 3, 1]]},
        {"picture": "a.png", "expected": alone.label},
        {"picture": "b.png", "target": "keys", "expected": "no such class"},
        {"picture": "b.png", "target": 2, "expected": (explainer(pictures / "b.png").top[0].index + 1) % 10},
    ]
    manifest = pictures / "list.jsonl"
    manifest.write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = Sources()
    sources.add_manifest(manifest)
    done = audit(explainer, sources.items, tmp_path / "out", target=other)
    first, away, second, third, fourth = read_records(tmp_path / "out")
    mask = boxes_mask(rows[0]["boxes"], (60, 80))  # type: ignore[arg-type]
    assert first["class_index"] == alone.class_index and first["target"] == alone.label
    assert not alone.is_empty and pointing_game(alone.values, mask) == 1.0
    assert first["localisation"]["pointing"] is True and away["localisation"]["pointing"] is False
    assert first["localisation"]["energy"] == pytest.approx(energy_pointing_game(alone.values, mask), rel=1e-4)
    assert second["class_index"] == second["target"] == other, "the run's target holds where the line has none"
    assert second["correct"] is True and second["localisation"] is None
    assert third["status"] == "error" and "no class is called `keys`" in third["error"]["message"]
    assert fourth["class_index"] == 2 and fourth["correct"] is False
    assert done.errors == 1 and done.first_errors[0][0] == third["name"]


def test_an_expected_class_that_the_model_does_not_have_is_neither_right_nor_wrong(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    items = [Item("a.png", str(pictures / "a.png"), expected=e) for e in ("zebra", 1)]
    done = audit(explainer, [items[0], replace(items[1], name="b.png")], tmp_path / "out")
    record, known = read_records(tmp_path / "out")
    assert (record["expected"], record["expected_index"], record["correct"]) == ("zebra", None, None)
    assert known["expected_index"] == 1
    assert done.unknown == 1 and "1 whose expected class the model does not have" in done.text("out")


def test_a_second_run_does_only_what_is_missing(
    explainer: Explainer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (pictures / "c.png").rename(tmp_path / "later.png")
    run(explainer, pictures, out)
    loaded: list[str] = []
    load = audit.__globals__["load_picture"]
    monkeypatch.setitem(audit.__globals__, "load_picture", lambda p, **o: (loaded.append(p), load(p, **o))[1])
    assert run(explainer, pictures, out).explained == 0 and loaded == []
    (tmp_path / "later.png").rename(pictures / "c.png")
    done = run(explainer, pictures, out)
    assert (done.explained, done.before) == (1, 5) and loaded == [str(pictures / "c.png")]
    assert [r["name"] for r in read_records(out)] == [f"{letter}.png" for letter in "abcdef"], "in order again"
    run(explainer, pictures, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_another_question_about_a_picture_is_not_taken_for_answered(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    item = Item("a.png", str(pictures / "a.png"), target=1)
    audit(explainer, [item], tmp_path / "out")
    assert audit(explainer, [replace(item, target=2)], tmp_path / "out").explained == 1
    assert [r["class_index"] for r in read_records(tmp_path / "out")] == [2]


def test_pictures_that_are_asked_for_no_more_keep_their_records(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    run(explainer, pictures, tmp_path / "out")
    for letter in "abc":
        (pictures / f"{letter}.png").unlink()
    assert run(explainer, pictures, tmp_path / "out").pictures == 3
    assert [r["name"][0] for r in read_records(tmp_path / "out")] == list("defabc")


@pytest.mark.parametrize("options", [{"output": Output(opacity=0.3)}, {"target": 1}])
def test_other_settings_are_refused_and_restart_begins_anew(
    explainer: Explainer, pictures: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    out = tmp_path / "out"
    run(explainer, pictures, out)
    (out / "overlays" / "mine.txt").write_text("not onnxcam's")
    before = contents(out)
    with pytest.raises(UsageError, match=r"other settings\n  settings\.(opacity: was 0.5, now 0.3|target: was None)"):
        run(explainer, pictures, out, **options)
    assert contents(out) == before
    assert run(explainer, pictures, out, restart=True, **options).explained == 6
    run(explainer, pictures, tmp_path / "new", **options)
    (out / "overlays" / "mine.txt").unlink()  # kept: a restart deletes only what is recorded
    assert contents(out) == contents(tmp_path / "new")


def test_another_model_or_method_is_refused(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    run(explainer, pictures, tmp_path / "out")
    with pytest.raises(UsageError, match=r"provenance\.method: was gradcam, now hirescam"):
        run(Explainer(MODEL, method="hirescam", threads=1), pictures, tmp_path / "out")


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_an_error(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(explainer, pictures, out)
    whole = (out / "records.jsonl").read_bytes()
    for torn in (1, 20, len(whole.splitlines()[-1])):
        (out / "records.jsonl").write_bytes(whole[:-torn])
        assert len(list(read_records(out))) == 5
        assert run(explainer, pictures, out).explained == 1
        assert (out / "records.jsonl").read_bytes() == whole
    (out / "records.jsonl").write_bytes(b"{}\n" + whole)
    with pytest.raises(OutputError, match=r"records.jsonl, line 1: not a record"):
        run(explainer, pictures, out)


def test_bad_pictures_are_tried_again_unless_told_not_to(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    out, good = tmp_path / "out", (pictures / "b.png").read_bytes()
    run(explainer, pictures, tmp_path / "whole")
    (pictures / "b.png").write_bytes(good[:100])
    first = run(explainer, pictures, out)
    assert (first.explained, first.errors) == (5, 1)
    left = run(explainer, pictures, out, retry=False)
    assert (left.explained, left.before, left.errors) == (0, 6, 1)
    again = run(explainer, pictures, out)
    assert (again.explained, again.before, again.errors) == (0, 5, 1)
    (pictures / "b.png").write_bytes(good)
    last = run(explainer, pictures, out)
    assert (last.explained, last.before, last.errors) == (1, 5, 0)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_picture_that_the_model_fails_on_is_an_error_and_the_rest_of_its_batch_is_not(
    explainer: Explainer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain, bad = explainer._explain, str(pictures / "d.png")

    def fails(tensor, questions, views, loaded):  # type: ignore[no-untyped-def]
        if any(p.source == bad for p in loaded):
            raise ModelError("out of memory", "none")
        return explain(tensor, questions, views, loaded)

    monkeypatch.setattr(explainer, "_explain", fails)
    for batch in (6, 1):
        out = tmp_path / f"out{batch}"
        done = run(explainer, pictures, out, batch=batch)
        assert (done.explained, done.errors) == (5, 1)
        assert [r["name"] for r in read_records(out) if r["status"] == "error"] == ["d.png"]
    monkeypatch.setattr(explainer, "_explain", lambda *a: (_ for _ in ()).throw(ModelError("broken", "none")))
    with pytest.raises(ModelError, match="broken"):
        run(explainer, pictures, tmp_path / "other", batch=6)


def test_two_runs_do_not_write_to_one_folder(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(explainer, pictures, out)
    with OutputFolder(out, read_run(out)), pytest.raises(OutputError, match="another run is writing"):
        run(explainer, pictures, out)
    assert run(explainer, pictures, out).before == 6, "and the lock ends with the run"


def test_nothing_is_written_outside_the_folder(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    manifest = pictures / "sub" / "list.csv"
    manifest.parent.mkdir()
    manifest.write_text(f"picture\n../a.png\n{pictures}/b.png\n../../pictures/c.png\n")
    sources = Sources()
    sources.add_manifest(manifest)
    before = contents(tmp_path)
    assert audit(explainer, sources.items, tmp_path / "deep" / "out").explained == 3
    assert all(name.startswith("deep/out/") for name in contents(tmp_path).keys() - before.keys())
    shutil.rmtree(tmp_path / "deep" / "out" / "overlays")
    (tmp_path / "away").mkdir()
    (tmp_path / "deep" / "out" / "overlays").symlink_to(tmp_path / "away")
    with pytest.raises(OutputError, match="leads out of"):
        audit(explainer, sources.items, tmp_path / "deep" / "out", restart=True)
    assert list((tmp_path / "away").iterdir()) == []


def test_records_lead_to_the_pictures_through_links_too(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    (tmp_path / "linked").symlink_to(pictures)
    run(explainer, tmp_path / "linked", tmp_path / "link")
    for record in read_records(tmp_path / "link"):
        assert (tmp_path / "link" / record["picture"]).samefile(pictures / record["name"])
    assert run(explainer, pictures, tmp_path / "deep" / "real").before == 6


def test_an_output_folder_among_the_pictures_is_not_explained(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run(explainer, pictures, pictures / "out").pictures == 6


def test_a_folder_that_cannot_be_written_is_an_error_by_design(
    explainer: Explainer, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run(explainer, pictures, tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "records.jsonl").write_text("mine\n")
    with pytest.raises(OutputError, match=r"without `run\.json`"):
        run(explainer, pictures, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "records.jsonl").read_text() == "mine\n"
    with pytest.raises(UsageError, match="holds no audit"):
        list(read_records(tmp_path))


def test_a_full_disk_ends_the_run_and_what_is_finished_is_kept(
    explainer: Explainer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def full(self: Path, data: bytes) -> int:
        if ".partial" in self.parts and len(written) == 4:  # run.json and three overlays fit
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        written.append(self)
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(explainer, pictures, tmp_path / "out", batch=1, workers=1, runners=1)
    monkeypatch.undo()
    assert len(list(read_records(tmp_path / "out"))) == 3
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == [f"{c}.png.cam.png" for c in "abc"]
    run(explainer, pictures, tmp_path / "out")
    run(explainer, pictures, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_command_says_what_it_did_and_leaves_with_7_where_pictures_are_bad(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (pictures / "b.png").write_bytes(b"")
    command = ["explain", str(MODEL), "--threads", "1", "pictures", "-o", "out"]
    assert main(command) == 7
    said = capsys.readouterr()
    assert said.out.startswith("6 pictures: 5 explained, 1 bad, ") and said.out.endswith("/s -> out\n")
    assert "warning: b.png: pictures/b.png: is empty (0 bytes)" in said.err
    assert main([*command, "--json"]) == 7
    summary = json.loads(capsys.readouterr().out)
    assert (summary["explained"], summary["before"], summary["errors"]) == (0, 5, 1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"pictures/a.png\npictures/c.png\n")))
    assert main(["explain", str(MODEL), "--threads", "1", "-", "-o", "listed", "--no-overlays"]) == 0
    assert [r["name"] for r in read_records("listed")] == ["pictures/a.png", "pictures/c.png"]
    with (tmp_path / "list.csv").open("w") as file:
        csv.writer(file).writerows([["picture", "target"], ["pictures/a.png", "key"]])
    assert main(["explain", str(MODEL), "--threads", "1", "--manifest", "list.csv", "-o", "from-list"]) == 0
    assert [r["label"] for r in read_records("from-list")] == ["key"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe needs a system that has them")
def test_a_pipe_is_refused_and_does_not_hold_up_the_run(explainer: Explainer, pictures: Path, tmp_path: Path) -> None:
    os.mkfifo(pictures / "pipe.png")
    done = run(explainer, pictures, tmp_path / "out")
    assert done.errors == 1 and "a device or a pipe" in done.first_errors[0][1]


def test_progress_is_told_line_by_line_where_there_is_no_terminal(pictures: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from onnxcam import _console; _console.EVERY = 0.0; from onnxcam.cli import main\n"
        f"sys.exit(main(['explain', {str(MODEL)!r}, {str(pictures)!r}, '-o', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("explaining: ")]
    assert [line.split(",")[0] for line in lines] == [f"explaining: {n} of 6" for n in range(1, 7)]
    assert all(line.split(", ")[1].endswith("/s") and line.endswith(" left") for line in lines)
