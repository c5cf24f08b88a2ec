"""What a header and a record of an audit look like, so that one from anywhere can be read without surprises."""

from typing import Any

_NUMBER = (int, float)
_TEXT = (None, str)

# A type, None, a tuple of forms of which one fits, a list of one form for all, or an object with at least these keys.
_HEADER = {
    "settings": {},
    "classes": int,
    "labels": (None, [str]),
    "provenance": {},
}
_ASKED = {
    "name": str,
    "picture": str,
    "target": (None, str, int),
    "expected": (None, str, int),
    "boxes": (None, [[_NUMBER]]),
}
_FAILED = {**_ASKED, "error": {"kind": str, "message": str, "hint": str}}
_EXPLAINED = {
    **_ASKED,
    "sha256": _TEXT,
    "class_index": (None, int),
    "label": _TEXT,
    "score": (None, *_NUMBER),
    "probability": (None, *_NUMBER),
    "top": [{"index": int, "label": _TEXT, "score": (None, *_NUMBER)}],
    "expected_index": (None, int),
    "correct": (None, bool),
    "layer": str,
    "normalize": str,
    "clip": _NUMBER,
    "grids": [[int]],
    "size": [int],
    "region": [int],
    "peak": [int],
    "has_nan": bool,
    "warnings": [str],
    "localisation": (None, {"pointing": (None, bool), "energy": (None, *_NUMBER)}),
    "files": {},
}
_DETECTED = [
    {
        "index": int,
        "class_index": int,
        "label": _TEXT,
        "score": _NUMBER,
        "xyxy": [_NUMBER],
        "peak": (None, [int]),
    }
]


def is_header(value: Any) -> bool:
    """Whether it has the fields of a `run.json`, of their types."""
    if not _fits(value, _HEADER):
        return False
    drawn, made = value["settings"], value["provenance"]
    return (
        _fits(drawn.get("opacity"), (None, *_NUMBER))
        and 0 <= (drawn.get("opacity") or 0) <= 1
        and _fits(drawn.get("colormap"), _TEXT)
        and _fits(made.get("model"), (None, {}))
        and all(_fits(said, _TEXT) for said in (made.get("model") or {}).values())
    )


def is_record(value: Any) -> bool:
    """Whether it has the fields of a record, of their types, and numbers that can be true of a picture."""
    if isinstance(value, dict) and value.get("status") == "error":
        return _fits(value, _FAILED)
    if not (isinstance(value, dict) and value.get("status") == "ok" and _fits(value, _EXPLAINED)):
        return False
    if not (len(value["size"]) == 2 and len(value["region"]) == 4 and value["grids"]):
        return False
    found = value.get("detected", [])
    if not _fits(found, _DETECTED) or not all(len(b["xyxy"]) == 4 and len(b["peak"] or (0, 0)) == 2 for b in found):
        return False
    (height, width), (x0, y0, x1, y1) = value["size"], value["region"]
    return (
        0 <= x0 < x1 <= width
        and 0 <= y0 < y1 <= height
        and all(grid and min(grid) > 0 for grid in value["grids"])
        and 0 < value["clip"] <= 100
        and all(path is None or isinstance(path, str) for path in value["files"].values())
    )


def _fits(value: Any, form: Any) -> bool:
    match form:
        case None:
            return value is None
        case tuple():
            return any(_fits(value, one) for one in form)
        case list():
            return isinstance(value, list) and all(_fits(inner, form[0]) for inner in value)
        case dict():
            return isinstance(value, dict) and all(key in value and _fits(value[key], form[key]) for key in form)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))
