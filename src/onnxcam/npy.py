"""Arrays from .npy files of others: numbers only, never Python objects."""

import io
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"


def read_npy(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The array in a .npy file. Raises: ValueError that says why it is none."""
    try:
        data = Path(path).read_bytes()
        if not data.startswith(_MAGIC):  # np.load would open a zip too
            raise ValueError("it does not begin as one")
        array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, TokenError, TypeError) as error:
        raise ValueError(f"its header is damaged: {error}") from error
    if array.dtype.kind not in "biufUS":
        raise ValueError(f"it holds {array.dtype}, not numbers")
    return array
