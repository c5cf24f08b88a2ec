"""Inputs beside the picture: what they take, and the values that they are fed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from onnxcam.errors import UsageError
from onnxcam.graph.index import Dim, Shape, value_type
from onnxcam.graph.load import declared_inputs
from onnxcam.npy import read_npy

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Beside:
    """An input beside the picture: its `value`, (1, ...) where it has the batch in front (`per_sample`)."""

    name: str
    value: Array
    per_sample: bool
    declared: Shape
    dtype: int

    def replaced(self, given: Any) -> "Beside":
        """The input with another value. Raises: UsageError for one of another shape or type."""
        found = _beside(self.name, self.dtype, (self.declared[0], *self.value.shape[1:]) if self.declared else (),
                        self.declared[0] if self.per_sample else None, given)  # fmt: skip
        return replace(found, declared=self.declared, per_sample=self.per_sample)

    def rows(self, count: int) -> Array:
        """The value for `count` samples."""
        return np.repeat(self.value, count, axis=0) if self.per_sample and len(self.value) == 1 else self.value

    @property
    def bound(self) -> list[Dim]:
        """The shape for shape inference: the batch a symbol where it is one, the rest as the value has it."""
        batch = self.declared[0] if self.declared else None
        open_batch = self.per_sample and not isinstance(batch, int)
        return ["N", *self.value.shape[1:]] if open_batch else list(self.value.shape)


def beside(model: ModelProto, source: str, picture: str, given: Mapping[str, Any]) -> dict[str, Beside]:
    """The inputs beside `picture` with the values given: numbers, arrays, paths of .npy files.

    Raises: UsageError for one that is missing, unknown, or of another shape or type, with what was expected.
    """
    inputs = {i.name: value_type(i) for i in declared_inputs(model)}
    unknown = [name for name in given if name not in inputs or name == picture]
    others = {name: kind for name, kind in inputs.items() if name != picture}
    if unknown:
        what = "is the picture" if unknown[0] == picture else "does not exist"
        listed = ", ".join(f"`{n}`" for n in others) or "there are none beside the picture"
        raise UsageError(f"input `{unknown[0]}` {what}", f"inputs that take values: {listed}")
    missing = {name: kind for name, kind in others.items() if name not in given}
    if missing:
        listing = ", ".join(f"`{n}` {_type_name(t.dtype)} {_shape_text(t.shape)}" for n, t in missing.items())
        first = next(iter(missing))
        raise UsageError(
            f"{source} needs {'an input' if len(missing) == 1 else f'{len(missing)} inputs'} beside the picture "
            f"`{picture}`: {listing}",
            f"pass `--feed {first}=VALUE` or `--feed {first}=FILE.npy`, in Python `feeds={{{first!r}: value}}`; where "
            "another input is the picture, `--input NAME`",
        )
    batch = (inputs[picture].shape or (None,))[0]
    return {name: _beside(name, others[name].dtype, others[name].shape, batch, value) for name, value in given.items()}


def _beside(name: str, dtype: int, shape: Shape | None, batch: Dim, given: Any) -> Beside:
    kind = np.dtype(object) if not dtype or _type_name(dtype) == "string" else helper.tensor_dtype_to_np_dtype(dtype)
    value = _value(name, kind, given)
    if shape is None:
        return Beside(name, value, False, value.shape, dtype)
    if value.ndim == 0:
        value = np.full([d if isinstance(d, int) and d > 0 else 1 for d in shape], value, value.dtype)
    elif value.ndim == len(shape) - 1:
        value = value[np.newaxis]
    fits = value.ndim == len(shape) and all(
        not isinstance(d, int) or d <= 0 or d == n or (i == 0 and n == 1)
        for i, (d, n) in enumerate(zip(shape, value.shape, strict=True))
    )
    if not fits:
        raise UsageError(
            f"input `{name}` takes {_type_name(dtype)} {_shape_text(shape)}, not {value.dtype} {value.shape}",
            "give an array of that shape; the batch may be left out",
        )
    first = shape[0] if shape else None
    same = bool(shape) and (first == batch if first is not None and batch is not None else len(value) == 1)
    # TensorFlow's exporter names every open size by itself; a first axis of length 1 is taken for the batch there.
    unnamed = isinstance(first, str) and first.startswith("unk_") and len(value) == 1
    return Beside(name, np.ascontiguousarray(value), same or unnamed, shape, dtype)


def _value(name: str, kind: np.dtype[Any], given: Any) -> Array:
    """Raises: UsageError for a file that is none, and for values that the type cannot hold."""
    if isinstance(given, str | Path):
        given = _read(name, str(given), kind)
    array = np.asarray(given)
    if kind.kind == "O":
        return array.astype(object)
    with np.errstate(invalid="ignore"):
        try:
            cast = array.astype(kind)
        except (TypeError, ValueError) as error:
            raise UsageError(f"input `{name}` takes {kind.name}, not {given!r}", "give numbers") from error
    if kind.kind in "iub" and not np.array_equal(cast, array):
        raise UsageError(f"input `{name}` takes {kind.name}, and {given!r} is none", "give whole numbers")
    return cast


def _read(name: str, text: str, kind: np.dtype[Any]) -> Any:
    """A .npy file, or numbers separated by commas, or, where text is taken, the text itself."""
    if text.endswith(".npy"):
        try:
            return read_npy(text)
        except ValueError as error:
            raise UsageError(f"input `{name}`: {text} is no .npy file: {error}", "use `numpy.save`") from error
    if kind.kind == "O":
        return text
    parts = text.replace(",", " ").split()
    try:
        numbers = [float(part) if kind.kind == "f" else int(part) for part in parts]
    except ValueError:
        raise UsageError(
            f"input `{name}` takes {kind.name}, not `{text}`", "give a number, several with commas, or a .npy file"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _type_name(dtype: int) -> str:
    return helper.tensor_dtype_to_string(dtype).removeprefix("TensorProto.").lower() if dtype else "unknown"


def _shape_text(shape: Sequence[Dim] | None) -> str:
    return "of any shape" if shape is None else f"({', '.join('?' if d is None else str(d) for d in shape)})"
