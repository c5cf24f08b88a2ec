"""Installed size: onnxcam with the `cpu` extra and all that it requires, against torch + torchvision + grad-cam.

Counted from the records of the packages installed here, each once; what is not installed is said.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.measure import Row, Rows, Settings

OURS, THEIRS = ("onnxcam[cpu]",), ("torch", "torchvision", "grad-cam")


def installed(settings: Settings) -> Rows:
    try:
        mine, theirs = (sum(map(_size, _closure(names).values())) for names in (OURS, THEIRS))
    except PackageNotFoundError as error:
        yield Row("installed", "size", note=f"missing: pip install {error.name}")
        return
    version = distribution("torch").version
    note = f"{mine / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, torch {version}"
    yield Row("installed", "onnxcam[cpu]", against=" + ".join(THEIRS), value=mine / theirs, target=0.25, note=note)


def _closure(names: tuple[str, ...]) -> dict[str, Distribution]:
    """Distributions by name, with everything that they require here."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name, _, extras = waiting.pop().rstrip("]").partition("[")
        package = distribution(name)
        if package.metadata["Name"] in found and not extras:
            continue
        found[package.metadata["Name"]] = package
        for requirement in package.requires or ():
            needed, _, marker = requirement.partition(";")
            asked = re.search(r"extra\s*==\s*[\"']([\w-]+)", marker)
            if asked is None or asked[1] in extras.split(","):
                try:
                    distribution(plain := re.split(r"[\s<>=!~\[(]", needed.strip())[0])
                except PackageNotFoundError:
                    if not marker or asked is not None:
                        raise
                else:
                    waiting.append(plain)
    return found


def _size(package: Distribution) -> int:
    paths = (Path(str(package.locate_file(f))) for f in package.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())
