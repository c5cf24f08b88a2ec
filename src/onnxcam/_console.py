"""What a person reads: the only file that prints. Results go to stdout, everything else to stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxcam.errors import OnnxCamError


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would leave with exit code 1; `cli.main` knows better


# NO_COLOR: rich alone would keep bold and dim.
_colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
# Piped output is for scripts: as wide as it needs to be.
out = _Console(highlight=False, soft_wrap=True, color_system=_colors, width=None if sys.stdout.isatty() else 400)
err = _Console(stderr=True, highlight=False, soft_wrap=True, color_system=_colors)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_error(error: OnnxCamError) -> None:
    """`error: ...`, a blank line, `hint: ...` on stderr."""
    err.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        err.print(f"\n[bold cyan]hint:[/] {escape(error.hint)}")


def print_text(text: str) -> None:
    """A document on stdout, as it is."""
    sys.stdout.write(text)


def print_line(text: str) -> None:
    """A line of the result."""
    out.print(escape(text))


def print_note(text: str) -> None:
    """Something that was decided for the user."""
    err.print(f"[dim]note: {escape(text)}[/]")


def print_warning(text: str) -> None:
    """Something that makes a result unfit to be believed."""
    err.print(f"[bold yellow]warning:[/] {escape(text)}")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), to_stderr: bool = False
) -> None:
    """A plain table, readable without colour; columns named in `right` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    (err if to_stderr else out).print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal, moved by calling the result with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


EVERY = 10.0
"""Seconds between lines of progress, where there is no terminal."""


@contextmanager
def picture_progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Pictures done, their rate, the time left and the errors, by calling the result with (done, total, errors).

    A bar on stderr where that is a terminal, else a line now and then. What was done before is in no rate.
    """
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun = shown = time.monotonic()
    first: int | None = None
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn(), TextColumn("[red]{task.fields[bad]}[/]"))  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None, rate="", bad="")

        def moved(done: int, total: int, errors: int) -> None:
            nonlocal first, shown
            now = time.monotonic()
            if first is None:
                first = done - 1
                bar.update(task, completed=first, total=total)
            rate = (done - first) / max(now - begun, 1e-9)
            bad = f"{errors} bad" if errors else ""
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s", bad=bad)
            if not err.is_terminal and now - shown >= EVERY:
                shown = now
                left = duration((total - done) / rate)
                err.print(f"{what}: {done} of {total}, {rate:.1f}/s, {left} left{', ' if bad else ''}{bad}")

        yield moved


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
