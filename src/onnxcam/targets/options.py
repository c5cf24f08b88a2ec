"""The target that a command line asks for."""

from collections.abc import Sequence
from typing import Any

from onnxcam.errors import UsageError
from onnxcam.targets.against import Against
from onnxcam.targets.element import Element
from onnxcam.targets.kind import TargetSpec
from onnxcam.targets.segmentation import Segmentation
from onnxcam.targets.similarity import Similarity


def chosen_target(
    *,
    target: str | Sequence[str] | None = None,
    output: str | None = None,
    against: str | None = None,
    element: str | None = None,
    mask: str | None = None,
    region: Sequence[float] | None = None,
    multi_label: bool = False,
    background: str | None = None,
    similar_to: str | None = None,
    unlike: str | None = None,
) -> TargetSpec | None:
    """The target, None where a class is asked for; target: that class.

    similar_to, unlike: a file, or `input` where the reference shall be an input of an exported file.

    Raises: UsageError where two of them contradict each other.
    """
    given: dict[str, Any] = {
        "--element": element,
        "--similar-to": similar_to,
        "--unlike": unlike,
        "--against": against,
        "--mask, --region, --multi-label, --background": mask or region or multi_label or background,
    }
    asked = [name for name, value in given.items() if value]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} at the same time", "give one of them")
    if mask is not None and region is not None:
        raise UsageError("a mask and a region at the same time", "give one of them")
    if target is not None and (element or similar_to or unlike):
        raise UsageError(f"{asked[0]} is no class, and --target names one", "leave one of them out")
    if element is not None:
        return Element(element)
    if similar_to is not None or unlike is not None:
        reference = similar_to or unlike
        return Similarity(None if reference == "input" else reference, output=output, unlike=unlike is not None)
    if against is not None:
        return Against(of=_single(target), rival=against, output=output)
    if not asked:
        return None
    box = None
    if region is not None:
        if len(region) != 4:
            raise UsageError(f"a region of {len(region)} numbers", "give x0,y0,x1,y1 in pixels of the picture")
        box = (region[0], region[1], region[2], region[3])
    classes: dict[str, Any] = {}
    if background is not None:
        if background != "none" and not background.isdigit():
            raise UsageError(f"background `{background}`", "give a class index, or `none`")
        classes["background"] = None if background == "none" else int(background)
    return Segmentation(_single(target), mask=mask, box=box, output=output, multi_label=multi_label or None, **classes)


def _single(target: str | Sequence[str] | None) -> str | None:
    """Raises: UsageError for several classes."""
    if target is None or isinstance(target, str):
        return target
    if len(target) > 1:
        raise UsageError(f"{len(target)} classes in one region, or against one", "give one")
    return target[0]
