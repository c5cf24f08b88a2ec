"""The stages of an explanation: what is counted, once, and nothing while nobody asks."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onnxcam.cli import main
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.profiling import profile, stage


@stage("inner")
def inner() -> None:
    time.sleep(0.01)


@stage("outer")
def outer() -> None:
    inner()
    time.sleep(0.01)


def test_a_stage_within_a_stage_counts_as_part_of_it() -> None:
    with profile() as found:
        outer()
        inner()
    assert found.calls == {"outer": 1, "inner": 1}
    assert found.seconds["outer"] >= 0.02 and found.seconds["inner"] >= 0.01
    assert sum(found.seconds.values()) <= found.total


def test_nothing_is_counted_after_the_profile_and_errors_end_a_stage() -> None:
    @stage("failing")
    def failing() -> None:
        raise ValueError

    with profile() as found, pytest.raises(ValueError):
        failing()
    inner()
    assert found.calls == {"failing": 1}
    with profile() as found:
        inner()
    assert found.calls == {"inner": 1}


def test_every_thread_counts() -> None:
    with profile() as found, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: inner(), range(8)))
    assert found.calls == {"inner": 8}


def test_the_command_line_says_where_the_time_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(FOLDER / "demo.onnx"), str(PICTURES / "flower.jpg"), "--profile"]) == 0
    lines = capsys.readouterr().err.splitlines()
    stages = [line.split()[0] for line in lines if line and not line.startswith("note")]
    assert {
        "stage",
        "read",
        "load",
        "rewrite",
        "session",
        "decode",
        "preprocess",
        "run",
        "kernels",
        "render",
        "encode",
    } <= {*stages}


def test_the_command_line_reads_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.graph import read

    opened: list[str] = []
    parse = read._parse
    monkeypatch.setattr(read, "_parse", lambda data, name, *more: opened.append(name) or parse(data, name, *more))
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(FOLDER / "demo.onnx"), str(PICTURES / "flower.jpg")]) == 0
    assert len(opened) == 1
