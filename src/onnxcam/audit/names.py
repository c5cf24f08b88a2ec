"""A name for every picture of a run: readable, its own, safe on any file system, always inside the output folder."""

import hashlib
import re
import unicodedata

COMPONENT = 180
"""Most UTF-8 bytes of a file or folder name: file systems take 255, less what is appended."""
WHOLE = 700
"""Most UTF-8 bytes of a name with its folders, below which systems that limit paths still have room."""

# What Windows refuses in names, and what no UTF-8 can hold.
_FOREIGN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)


def stable_name(relative: str) -> str:
    """A picture's path as the name of its outputs: the same on every run, whatever other pictures there are.

    Parts that lead elsewhere (`/`, `..`, a drive) are dropped. Where something must be changed for a file system to
    take it, `~` and a hash of the path keep the name apart from others that would become the same.
    """
    parts = [p for p in relative.replace("\\", "/").split("/") if p not in ("", ".", "..")] or ["_"]
    safe = [_component(p) for p in parts]
    safe[:-1] = [p.replace(".cam.", "_cam_") for p in safe[:-1]]  # no folder has the name of an output
    whole = "/".join(safe)
    if len(whole.encode()) > WHOLE:
        whole = safe[-1]
    return whole if whole == relative else _marked(whole, relative)


def distinct(name: str, told_apart_by: str, taken: set[str]) -> str:
    """The name, marked with a hash where one that file systems may take for the same is `taken` already; adds it."""
    chosen, n = name, 1
    while (key := folded(chosen)) in taken:
        chosen, n = _marked(name, f"{n}:{told_apart_by}"), n + 1
    taken.add(key)
    return chosen


def folded(name: str) -> str:
    """What names have in common that a file system may take for one: upper and lower case, Unicode's normal forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _component(part: str) -> str:
    safe = _FOREIGN.sub("_", part)
    safe = safe.rstrip(". ") or "_"
    if _RESERVED.fullmatch(safe):
        safe = f"_{safe}"
    return _cut(safe, COMPONENT)


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _marked(name: str, path: str) -> str:
    folder, slash, last = name.rpartition("/")
    digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{folder}{slash}{_cut(last, COMPONENT - 9)}~{digest}"
