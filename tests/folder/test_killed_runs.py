"""Runs that are killed or interrupted: whatever is there is whole, and going on ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill import COMMAND, check_whole, contents, make_pictures

COUNT = 90
BAD = 1


def run(pictures: Path, out: Path, lines: float = float("inf"), how: int = 0) -> int | None:
    """Start a run and send it a signal once its file of records has this many lines; the exit code."""
    command = [*COMMAND, str(pictures), "-o", str(out), "--batch", "4"]
    # A shell that starts the tests in the background has them ignore interrupts, which children inherit.
    default = None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=default)
    while process.poll() is None:
        records = out / "records.jsonl"
        if records.exists() and records.read_bytes().count(b"\n") >= lines:
            process.send_signal(how)
            break
        time.sleep(0.002)
    return process.communicate() and process.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and the folder that one uninterrupted run leaves."""
    home = tmp_path_factory.mktemp("whole")
    make_pictures(home / "pictures", COUNT)
    assert run(home / "pictures", home / "out") == 7
    assert len(contents(home / "out")) == 2 * (COUNT - BAD) + 2
    return home


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_run_killed_again_and_again_ends_as_one_run_does(whole: Path) -> None:
    out, rng = whole / "killed", random.Random(1)
    marks = sorted(rng.sample(range(1, COUNT - 20), 2))
    kept = [0]
    for mark in marks:
        assert run(whole / "pictures", out, mark, signal.SIGKILL) == -signal.SIGKILL
        kept.append(check_whole(out))
    assert kept == sorted(kept) and kept[1] >= marks[0] and kept[-1] < COUNT, "nothing is lost"
    assert run(whole / "pictures", out) == 7
    assert contents(out) == contents(whole / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_ctrl_c_leaves_with_130_and_what_is_finished_is_kept(whole: Path) -> None:
    out = whole / "interrupted"
    assert run(whole / "pictures", out, 30, signal.SIGINT) == 130
    assert COUNT > check_whole(out) >= 30
    assert not (out / ".partial").exists()
    assert run(whole / "pictures", out) == 7
    assert contents(out) == contents(whole / "out")
