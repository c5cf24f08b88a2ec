"""One self-contained HTML file: nothing is loaded, and the browser is told to refuse it."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from onnxcam.errors import OutputError, UsageError
from onnxcam.jsontext import parsed_json
from onnxcam.output import write_atomically
from onnxcam.report.gather import EMBEDDED, Gathered, gather


@dataclass(frozen=True)
class Written:
    """A report that was written: how many pictures and bytes, and what the page could not show."""

    path: Path
    pictures: int
    bytes: int
    notices: tuple[str, ...]


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    evaluation: str | os.PathLike[str] | None = None,
    title: str | None = None,
    side: int | None = None,
    embed: int = EMBEDDED,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """One HTML file of one audit, or of several of the same pictures that differ in method, layer or model.

    evaluation: a file with what `onnxcam evaluate --json` printed. title: default the model's name. side: longest side
    of the embedded pictures in pixels, default by their number. embed: how many pictures are embedded at most; of more,
    the mistakes and the flagged first, the others are listed. progress: called with pictures done, and all of them.

    Raises: UsageError where a folder holds no audit or the audits have nothing in common, OutputError.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path}: a report is an .html file", "name it `report.html`")
    if (side is not None and side < 16) or embed < 0:
        raise UsageError(f"{embed} pictures of {side} pixels", "give 16 pixels or more, and 0 pictures or more")
    measured = None if evaluation is None else _evaluation(Path(evaluation))
    gathered = gather(folders, evaluation=measured, title=title, side=side, embed=embed, progress=progress)
    data = page(gathered)
    return Written(write_atomically(path, data), len(gathered.report["pictures"]), len(data), gathered.notices)


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        found = parsed_json(path.read_bytes(), constant=lambda name: None)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "give what `evaluate --json` printed") from error
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"metrics", "methods", "settings", "warnings", "notes"} <= found.keys():
        raise UsageError(
            f"{path} is not an evaluation", "make one with `onnxcam evaluate MODEL PICTURES --json > evaluation.json`"
        )
    return found


def page(gathered: Gathered) -> bytes:
    """The file. Names and labels are data: they stand in JSON without `<`, and reach the page as text nodes."""
    template, style, script = (
        (files("onnxcam.report") / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    images = "".join(
        f'<script type="application/json" id="images-{i}">{_inert(chunk)}</script>\n'
        for i, chunk in enumerate(gathered.images)
    )
    text = Template(template).substitute(
        policy=policy,
        title=html.escape(str(gathered.report["title"])),
        style=style,
        script=script,
        report=_inert(gathered.report),
        images=images,
    )
    return text.encode("utf-8", errors="replace")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(value: Any) -> str:
    """JSON that no HTML parser can take for markup: ASCII, and none of `<`, `>`, `&`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
