"""The program as a process: signals, pipes, terminals, start-up."""

import os
import pty
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from colours import listing

PROGRAM = [sys.executable, "-m", "onnxcam.cli"]
EXPLAIN = [*PROGRAM, "explain", "colours.onnx", "dog.png"]
ESCAPE = "\x1b"


def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("argv", [["--help"], ["explain", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(argv: list[str]) -> None:
    code = f"""
import sys
from onnxcam.cli import main
try:
    main({argv!r})
except SystemExit as leave:
    assert leave.code in (0, None)
print(sorted({{'numpy', 'onnx', 'rich', 'PIL', 'onnxruntime'}} & sys.modules.keys()), file=sys.stderr)
"""
    result = run([sys.executable, "-c", code])
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert ("onnxcam" if "--version" in argv else "usage: onnxcam") in result.stdout


def test_help_names_every_command_and_exit_code() -> None:
    text = run([*PROGRAM, "--help"]).stdout
    assert all(word in text for word in ("explain", "layers", "check", "methods", "demo"))
    assert all(code in text for code in ("0 ok", "2 usage", "3 model", "4 unsupported", "5 picture", "6 output", "130"))


def test_exit_codes_reach_the_shell(folder: Path) -> None:
    assert run(EXPLAIN).returncode == 0
    assert run([*PROGRAM, "explain", "absent.onnx", "dog.png"]).returncode == 3
    assert run([*PROGRAM, "explain", "colours.onnx", "absent.png"]).returncode == 5


def test_piped_output_has_no_escape_codes(folder: Path) -> None:
    good, bad = run(EXPLAIN), run([*PROGRAM, "explain", "absent.onnx", "dog.png"])
    assert good.returncode == 0 and bad.returncode == 3
    assert ESCAPE not in good.stdout + good.stderr + bad.stdout + bad.stderr


def on_a_terminal(argv: list[str], **environment: str) -> str:
    """What a command shows on a terminal."""
    reader, terminal = pty.openpty()
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    process = subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, env=inherited | {"TERM": "xterm-256color"} | environment
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(reader, 4096):
            shown += piece
    except OSError:  # the terminal is gone with the process
        pass
    os.close(reader)
    process.wait(60)
    return shown.decode()


def test_a_terminal_gets_colour_unless_no_color_is_set(folder: Path) -> None:
    bad = [*PROGRAM, "explain", "absent.onnx", "dog.png"]
    assert f"{ESCAPE}[1;31merror:" in on_a_terminal(bad)
    for argv in (bad, EXPLAIN):
        plain = on_a_terminal(argv, NO_COLOR="1")
        assert ESCAPE not in plain and len(plain) > 50


def test_an_interrupt_during_a_run_is_exit_code_130_and_leaves_nothing(folder: Path) -> None:
    os.mkfifo("picture.png")  # the program waits for a picture that never comes
    before = sorted(listing_names(folder))
    process = subprocess.Popen(
        [*PROGRAM, "explain", "colours.onnx", "picture.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore interrupts, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with Path("picture.png").open("wb"):  # returns once the program reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert sorted(listing_names(folder)) == before


def listing_names(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*")]


@pytest.mark.parametrize(
    "argv",
    [["methods", "--json"], ["layers", "colours.onnx", "--json"], ["methods"], ["layers", "colours.onnx"], ["--help"]],
)
def test_a_reader_that_leaves_early_is_no_error(argv: list[str], folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # written out at the very end
    process = subprocess.run(
        [*PROGRAM, *argv], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_disk_that_is_full_leaves_nothing_half_written(folder: Path) -> None:
    before = listing(folder)

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    argv = [sys.executable, "-B", *PROGRAM[1:], *EXPLAIN[len(PROGRAM) :], "-o", "out.npy"]
    result = run(argv, preexec_fn=small_files)
    assert (result.returncode, result.stdout) == (6, "")
    assert "error: out.npy cannot be written: File too large" in result.stderr and "hint: " in result.stderr
    assert listing(folder) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc refuses new files even to root")
def test_a_folder_that_refuses_files_though_it_looks_writable_is_an_output_error(folder: Path) -> None:
    result = run([*PROGRAM, "explain", "colours.onnx", "dog.png", "-o", "/proc/out.png"])
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr.splitlines()[-3].startswith("error: /proc/out.png cannot be written")


def test_the_installed_command_is_this_program(folder: Path) -> None:
    script = Path(sys.executable).parent / "onnxcam"
    assert script.is_file()
    assert run([str(script), "--version"]).stdout == run([*PROGRAM, "--version"]).stdout
