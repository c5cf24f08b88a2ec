"""A folder of pictures with a detector: what one picture's command gives, for each, in an audit like any other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from heads import squares
from PIL import Image

from onnxcam import Detector
from onnxcam.audit.records import read_records, read_run
from onnxcam.audit.run import Output, audit
from onnxcam.audit.sources import Sources
from onnxcam.cli import main
from onnxcam.errors import OutputError, UsageError
from onnxcam.report.gather import gather

SHARED = Path(__file__).parents[3] / "shared"
Run = Callable[..., tuple[int, str, str]]


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `onnxcam explain squares.onnx ...` in a folder with pictures of no, one, two and three red cells in `in`."""
    monkeypatch.chdir(tmp_path)
    onnx.save(squares(), "squares.onnx")
    Path("labels.txt").write_text("square\nnothing\n")
    Path("in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 90, (64, 64, 3), np.uint8)
    pixels[..., 0] = 0
    for name, cells in {"0": (), "1": ((3, 2, 255),), "2": ((1, 1, 255), (6, 5, 230)), "3": ((0, 7, 240),)}.items():
        for x, y, red in cells:
            pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8, 0] = red
        Image.fromarray(pixels).save(f"in/{name}.png")  # each with the cells of those before

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["explain", "squares.onnx", "--labels", "labels.txt", "--threads", "1", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def contents(folder: str | Path) -> dict[str, bytes]:
    """All files but the time in `run.json`."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    files["run.json"] = json.dumps(json.loads(files["run.json"]) | {"created": None}).encode()
    return files


def test_every_box_is_recorded_where_it_was_painted(run: Run) -> None:
    code, out, _ = run("in", "-o", "out")
    assert code == 0 and out.startswith("4 pictures: 4 explained, 8 boxes, 1 without a box, ")
    none, one, two, three = read_records("out")
    assert [r["name"] for r in (none, one, two, three)] == ["0.png", "1.png", "2.png", "3.png"]
    scores = [sigmoid(20 * red / 255 - 16) * sigmoid(10) for red in (255, 230)]
    # Of cells that score the same the first in the picture stands first.
    assert two["detected"] == [
        {"index": i, "class_index": 0, "label": "square", "score": pytest.approx(score, rel=1e-5),
         "xyxy": [8 * x, 8 * y, 8 * x + 8, 8 * y + 8], "anchor": 8 * y + x, "peak": [8 * x + 3, 8 * y + 3]}
        for i, (x, y, score) in enumerate([(1, 1, scores[0]), (3, 2, scores[0]), (6, 5, scores[1])])
    ]  # fmt: skip
    assert (one["label"], one["class_index"], one["correct"]) == ("square", 0, None)
    assert one["probability"] == pytest.approx(scores[0], rel=1e-5) and one["peak"] == [27, 19]
    assert (two["label"], two["class_index"], two["probability"]) == ("3 boxes", None, None)
    assert [b["xyxy"] for b in three["detected"]][-2:] == [[0, 56, 8, 64], [48, 40, 56, 48]]
    assert none["detected"] == []
    header = read_run("out")
    assert header["labels"] == ["square", "nothing"] and header["provenance"]["detector"]["kind"] == "yolox"


def test_a_picture_without_a_box_is_a_result_and_its_overlay_is_the_picture(run: Run) -> None:
    assert run("in/0.png", "-o", "out/", "--values", "npy")[0] == 0
    (record,) = read_records("out")
    assert (record["status"], record["label"], record["class_index"], record["score"]) == ("ok", "0 boxes", None, 0.0)
    assert record["warnings"] == [] and record["is_empty"] is True and record["grids"] == [[8, 8]]
    with Image.open("out/overlays/in/0.png.cam.png") as drawn, Image.open("in/0.png") as picture:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture))
    values = np.load("out/values/in/0.png.cam.npy")
    assert values.shape == (64, 64) and not values.any()


OPTIONS = [
    (), ("--target", "square"), ("--threshold", "0.9"), ("--max-boxes", "1"), ("--inside",), ("--best-anchors", "0.03"),
    ("--box-score", "left"), ("--method", "gradcam"), ("--iou", "0.1", "--opacity", "0.9", "--colormap", "hot"),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_folder_holds_the_bytes_that_the_command_writes_for_one_picture(run: Run, options: tuple[str, ...]) -> None:
    assert run("in", "-o", "out", "--overlay-format", "jpg", "--values", "npy", *options)[0] == 0
    records = {r["name"]: r for r in read_records("out")}
    for name in ("1.png", "2.png", "3.png"):
        assert run(f"in/{name}", "-o", "one.jpg", *options)[0] == 0
        assert Path("one.jpg").read_bytes() == Path(f"out/overlays/{name}.cam.jpg").read_bytes()
        alone = json.loads(run(f"in/{name}", "-o", "one.npy", "--json", *options)[1])
        assert Path("one.npy").read_bytes() == Path(f"out/values/{name}.cam.npy").read_bytes()
        for field in alone.keys() - {"boxes", "provenance", "output"}:
            assert records[name][field] == alone[field], field


def test_a_class_that_no_box_is_of_leaves_the_picture_without_one(run: Run) -> None:
    code, out, _ = run("in", "-o", "out", "--target", "nothing")
    assert code == 0 and "8 boxes" in out
    assert [r["label"] for r in read_records("out")] == ["0 boxes"] * 4
    assert [[b["peak"] for b in r["detected"]] for r in read_records("out")] == [[None] * n for n in (0, 1, 3, 4)]


def test_a_broken_picture_is_counted_and_the_others_are_explained(run: Run) -> None:
    Path("in/1b.png").write_bytes(Path("in/1.png").read_bytes()[:80])
    code, out, err = run("in", "-o", "out")
    assert code == 7 and out.startswith("5 pictures: 4 explained, 1 bad, 8 boxes, 1 without a box, ")
    assert "1b.png: " in err
    records = {r["name"]: r for r in read_records("out")}
    assert records["1b.png"]["error"]["kind"] == "PictureError" and "detected" not in records["1b.png"]
    Path("in/1b.png").write_bytes(Path("in/1.png").read_bytes())
    assert run("in", "-o", "out")[1].startswith("5 pictures: 1 explained, 4 done before, 1 box, ")


def test_a_run_that_was_cut_short_is_gone_on_with_and_ends_as_one_run_does(run: Run) -> None:
    run("in", "-o", "whole", "--values", "png16")
    run("in", "-o", "out", "--values", "png16")
    lines = Path("out/records.jsonl").read_bytes().splitlines(keepends=True)
    Path("out/records.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:100])
    Path("out/overlays/3.png.cam.png").unlink()
    code, out, _ = run("in", "-o", "out", "--values", "png16")
    assert code == 0 and out.startswith("4 pictures: 2 explained, 2 done before, 7 boxes")
    assert contents("out") == contents("whole")
    assert run("in", "-o", "out", "--values", "png16")[1].startswith("4 pictures: 0 explained, 4 done before -> out")


def test_however_the_work_is_shared_out_the_folder_is_the_same(run: Run) -> None:
    run("in", "-o", "one", "--workers", "1", "--batch", "1")
    run("in", "-o", "other", "--workers", "3", "--batch", "8")
    assert contents("one") == contents("other")


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (("--threshold", "0.5"), "provenance.detector.threshold: was 0.25, now 0.5"),
        (("--iou", "0.5"), "provenance.detector.iou: was 0.45, now 0.5"),
        (("--max-boxes", "7"), "provenance.detector.max_boxes: was 100, now 7"),
        (("--inside",), "settings.inside: was None, now True"),
        (("--best-anchors", "0.5"), "settings.best_anchors: was None, now 0.5"),
        (("--target", "square"), "settings.target: was None, now square"),
    ],
)
def test_a_folder_made_with_other_settings_is_refused(run: Run, option: tuple[str, ...], difference: str) -> None:
    run("in", "-o", "out")
    before = contents("out")
    code, _, err = run("in", "-o", "out", *option)
    assert code == 2 and "out was made with other settings" in err and difference in err
    assert contents("out") == before


@pytest.mark.parametrize(
    ("option", "message", "hint"),
    [
        (("--box", "0"), "--box is the place in one picture's list of boxes", "--target CLASS"),
        (("--per-box",), "--per-box writes a file for each box of one picture", "one overlay for each picture"),
        (("--target", "dog"), "no class is called `dog`", "labels"),
        (("--best-anchors", "2"), "ratio 2.0 is outside (0, 1]", "0.02"),
        (("--best-anchors", "0.1", "--inside"), "the best anchors are of all classes and no box", "inside"),
        (("--best-anchors", "0.1", "--box-score", "top"), "anchors together have no `top`", "class"),
        (("--score", "probability"), "--score probability is of classes", "--box-score"),
        (("--threshold", "2"), "threshold 2 is outside [0, 1]", ""),
    ],
)
def test_what_no_picture_can_be_asked_is_refused_before_anything_is_written(
    run: Run, option: tuple[str, ...], message: str, hint: str
) -> None:
    code, out, err = run("in", "-o", "out", *option)
    error, _, advice = err.partition("\n\nhint: ")
    assert (code, out) == (2, "") and message in error and hint in advice and not Path("out").exists()


def test_a_manifest_says_which_class_to_explain_and_which_is_expected(run: Run) -> None:
    rows = [
        {"picture": "0.png", "expected": "square"},
        {"picture": "1.png", "expected": "square", "boxes": [[24, 16, 32, 24]]},
        {"picture": "2.png", "expected": "nothing", "target": "nothing"},
        {"picture": "3.png", "expected": "dog", "target": "dog"},
    ]
    Path("in/list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, _, _ = run("--manifest", "in/list.jsonl", "-o", "out")
    none, one, two, three = read_records("out")
    assert (none["correct"], one["correct"], two["correct"]) == (False, True, False), "whether such a box was found"
    assert (none["expected_index"], two["expected_index"]) == (0, 1)
    assert one["boxes"] == [[24, 16, 32, 24]] and one["detected"][0]["xyxy"] == [24, 16, 32, 24]
    assert one["localisation"]["pointing"] is True and none["localisation"] is None
    assert (two["label"], len(two["detected"])) == ("0 boxes", 3)
    assert code == 7 and three["error"]["message"] == "no class is called `dog`"


def test_python_takes_a_detector_where_it_takes_an_explainer(run: Run) -> None:
    run("in", "-o", "command", "--inside", "--values", "npy")
    detector = Detector("squares.onnx", labels="labels.txt", threads=1)
    sources = Sources()
    sources.add_inputs(["in"])
    done = audit(detector, sources.items, "python", asked={"inside": True}, output=Output(values="npy"))
    assert (done.explained, done.boxes, done.bare) == (4, 8, 1)
    assert contents("python") == contents("command")
    alone = detector("in/2.png", inside=True)
    np.testing.assert_array_equal(np.load("python/values/2.png.cam.npy"), alone.values)


@pytest.mark.parametrize("damage", [{"xyxy": [1, 2, 3]}, {"peak": [1]}, {"score": "high"}, {"label": 7}])
def test_a_record_with_boxes_that_are_none_is_damaged(run: Run, damage: dict[str, object]) -> None:
    run("in/1.png", "-o", "out/")
    record = json.loads(Path("out/records.jsonl").read_text())
    record["detected"][0] |= damage
    Path("out/records.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(OutputError, match=r"the record of `in/1.png` lacks fields"):
        list(read_records("out"))


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no ../shared/models")
def test_yolox_over_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes and places as the files' own README states them; one photograph has nothing of COCO's classes."""
    images, model = SHARED / "images", str(SHARED / "models" / "yolox_nano_416.onnx")
    names = ["darknet_dog.jpg", "skimage_rocket.jpg", "tract_elephants.jpg"]
    given, out = [str(images / n) for n in names], tmp_path / "out"
    assert main(["explain", model, *given, "-o", str(out), "--threads", "1", "--overlay-format", "jpg"]) == 0
    assert capsys.readouterr().out.startswith("3 pictures: 3 explained, 6 boxes, 1 without a box, ")
    dog, rocket, elephants = read_records(out)
    assert [b["label"] for b in dog["detected"]] == ["dog", "bicycle", "truck", "car"]
    assert (rocket["label"], [b["label"] for b in elephants["detected"]]) == ("0 boxes", ["elephant", "elephant"])
    for record in (dog, elephants):
        for box in record["detected"]:
            (x, y), (x0, y0, x1, y1) = box["peak"], box["xyxy"]
            assert x0 <= x < x1 and y0 <= y < y1, box
    assert main(["explain", model, given[0], "-o", str(tmp_path / "dog.jpg"), "--threads", "1"]) == 0
    assert (tmp_path / "dog.jpg").read_bytes() == (out / dog["files"]["overlay"]).read_bytes()


def entries(*folders: str) -> dict[str, dict[str, object]]:
    return {p["name"]: p["results"][0] for p in gather(folders).report["pictures"]}


def test_the_report_lists_the_boxes_of_every_picture(run: Run) -> None:
    run("in", "-o", "out", "--values", "png16")
    none, one, two, _ = entries("out").values()
    scores = [pytest.approx(sigmoid(20 * red / 255 - 16) * sigmoid(10), rel=1e-5) for red in (255, 230)]
    assert one["boxes"] == [[0, scores[0], [24, 16, 32, 24], [27, 19], True]]
    assert [(b[1], b[2]) for b in two["boxes"]] == [
        (scores[0], [8, 8, 16, 16]), (scores[0], [24, 16, 32, 24]), (scores[1], [48, 40, 56, 48]),
    ]  # fmt: skip
    assert (none["boxes"], none["score"], two["score"]) == ([], None, scores[0])
    assert all(entry["explained"] is None and entry["predicted"] is None for entry in (none, one, two))
    report = gather(["out"]).report
    assert report["classes"]["0"] == "square" and report["means"][0]["classes"] == {}
    assert gather(["out"]).images[0][0][1] == [None], "nothing lies over a picture without a box"


def test_the_report_says_what_was_found_but_not_explained_and_what_was_expected(run: Run) -> None:
    rows = [{"picture": "1.png", "expected": "square", "target": 1}, {"picture": "0.png", "expected": "square"}]
    Path("in/list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run("--manifest", "in/list.jsonl", "-o", "out")
    found, missed = entries("out").values()
    assert [box[3:] for box in found["boxes"]] == [[None, False]] and found["score"] is None
    assert (found["right"], missed["right"]) == (True, False)


def test_an_audit_of_a_detector_and_one_of_a_classifier_make_no_report_together(run: Run) -> None:
    for out in ("one", "other"):
        run("in", "-o", out)
    header = json.loads(Path("other/run.json").read_text())
    del header["provenance"]["detector"]
    Path("other/run.json").write_text(json.dumps(header))
    with pytest.raises(UsageError, match="of other and one one is of a detector"):
        gather(["one", "other"])
