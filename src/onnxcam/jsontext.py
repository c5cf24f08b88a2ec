"""JSON of others: parsed so strictly that what comes out can be walked, printed and converted without surprises."""

import json
import math
from collections.abc import Callable
from typing import Any

DEPTH = 64
"""How deep objects and lists may lie in one another."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parsed_json(text: str | bytes, constant: Callable[[str], Any] = _no_constant) -> Any:
    """The value of a JSON text. constant: what NaN, Infinity and -Infinity become; by default they are refused.

    Raises: ValueError where it is no JSON, is nested deeper than DEPTH, or holds a number that neither int64 nor
    float64 has.
    """
    try:
        value = json.loads(text, parse_constant=constant, parse_int=_integer, parse_float=_float)
    except RecursionError:
        raise ValueError(_DEEP) from None
    level = [value]
    for _ in range(DEPTH + 1):
        level = [inner for held in level for inner in _inside(held) if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(_DEEP)


_DEEP = f"objects and lists lie more than {DEPTH} deep in one another"


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"the number {text[:20]}... is beyond 64 bits")
    return value


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return value
