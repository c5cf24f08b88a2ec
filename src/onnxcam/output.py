"""Results appear by atomic rename: a file is whole or not there."""

import os
import tempfile
from pathlib import Path

from onnxcam.errors import OutputError
from onnxcam.profiling import stage


@stage("write")
def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` beside `path` and rename it into place; nothing half-written is left behind.

    Raises: OutputError (exit code 6) where the folder is missing or not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder", f"name a file in it: `{target / 'out.png'}`")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", _folder_hint(target)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"{target} cannot be written: {error.strerror}", _folder_hint(target)) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def _folder_hint(target: Path) -> str:
    if not target.parent.exists():
        return f"make the folder first: `mkdir -p {target.parent}`"
    return "choose another place, or free space and permissions there"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
