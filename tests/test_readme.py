"""README's code blocks run, and print what README says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# ```console blocks hold `$ command` lines and their output, ```python blocks run; both in one folder per document.
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.S | re.M)


def blocks(document: Path) -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in BLOCK.finditer(document.read_text("utf-8"))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def commands(block: str) -> list[tuple[str, str]]:
    """Commands of a console block with the output that follows each."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def same(said: str, printed: str) -> bool:
    """Equal up to trailing blanks; `...` in a document stands for anything."""
    lines = [line.rstrip() for line in said.strip().splitlines()]
    pattern = "\n".join(".*".join(map(re.escape, line.split("..."))) for line in lines)
    text = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, text, re.S) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_code_blocks_run_and_print_what_is_written(document: Path, folder: Path) -> None:
    program = ""
    for language, block in blocks(document):
        if language == "python":
            program += block  # the blocks of a document are one program; each runs where it stands
            said = "".join(m[1] + "\n" for m in re.finditer(r"^# -> (.*)$", program, re.M))
            python = [sys.executable, "-c", program]
            done = subprocess.run(python, capture_output=True, text=True, cwd=folder, check=False)
            assert done.returncode == 0, f"{document.name}: {done.stderr}"
            assert not said or same(said, done.stdout), f"{document.name} says\n{said}\nbut prints\n{done.stdout}"
            continue
        for command, said in commands(block):
            words = shlex.split(command)
            assert words[0] == "onnxcam", f"{document.name}: only onnxcam commands run in console blocks: {command}"
            done = subprocess.run(
                [sys.executable, "-m", "onnxcam.cli", *words[1:]],
                capture_output=True,
                text=True,
                cwd=folder,
                env={**os.environ, "COLUMNS": "400", "NO_COLOR": "1"},
                check=False,
            )
            printed = done.stdout if done.returncode == 0 else done.stderr
            assert same(said, printed), f"{document.name}: `{command}` says\n{said}\nbut prints\n{printed}{done.stderr}"


def test_the_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "<!-- test command -->" in readme
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_every_method_stands_in_the_table() -> None:
    from onnxcam.methods import METHODS

    readme = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z+]+)`", readme[readme.index("## Methods") : readme.index("Several layers fuse")]))
    assert named == set(METHODS)


def test_the_operator_table_is_the_one_that_the_command_prints() -> None:
    from importlib.metadata import version

    from onnxcam.autodiff.decisions import decisions, markdown

    written = (ROOT / "docs" / "operators.md").read_text("utf-8")
    if f"onnx {version('onnx')}:" not in written:
        pytest.skip("written with another version of onnx, which has other operators")
    assert written == markdown(decisions())
