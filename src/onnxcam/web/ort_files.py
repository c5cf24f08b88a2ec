"""ONNX Runtime's files for the browser: from a folder, or from npm's pinned and checksummed package."""

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from onnxcam.errors import OnnxCamError, UsageError, VerificationError

VERSION = "1.30.0"
MEGABYTES = 33
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""sha512 of npm's package of that version, in base64 as npm writes it."""

FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""What a page needs, with the sha256 of each in that version."""

_STATED = re.compile(rb"ONNX Runtime Web v(\S+)")


def ort_web_files(folder: str | os.PathLike[str] | None, say: Callable[[str], None]) -> tuple[str, dict[str, bytes]]:
    """(version, contents by name) of onnxruntime-web's files, taken from `folder`, else from npm.

    folder: `node_modules`, what it lies in, the package or its `dist`. say: is told where they come from. Files of the
    pinned version have to have its checksums; another version, in a folder, is taken as it is, and that is said.

    Raises: UsageError where the folder lacks them, or npm is missing or fails; VerificationError for a wrong checksum.
    """
    if folder is None:
        say(f"fetching onnxruntime-web {VERSION} by `npm pack` ({MEGABYTES} MB; its checksum is compared)")
        files = _packed()
    else:
        files = _lying_in(Path(folder))
    stated = _STATED.search(files["ort.wasm.min.mjs"][:500])
    version = stated[1].decode() if stated else "of an unknown version"
    if folder is None or version == VERSION:
        _compare(files, "npm's package" if folder is None else str(folder))
    else:
        say(f"onnxruntime-web {version} from {folder}; not {VERSION}, which was tried, so no checksum is compared")
    return version, files


def _lying_in(folder: Path) -> dict[str, bytes]:
    for place in ("", "dist", "onnxruntime-web/dist", "node_modules/onnxruntime-web/dist"):
        if all((folder / place / name).is_file() for name in FILES):
            try:
                return {name: (folder / place / name).read_bytes() for name in FILES}
            except OSError as error:
                raise UsageError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error
    raise UsageError(
        f"{folder} holds no onnxruntime-web: {', '.join(FILES)} are looked for",
        f"`npm install onnxruntime-web@{VERSION}` in it, or leave `--ort-web` out to have npm fetch them",
    )


def _packed() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(
            "npm, which fetches onnxruntime-web, is not installed",
            "install Node.js, or give a folder that holds onnxruntime-web: `--ort-web DIR`",
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
            reason = f": {said[0].strip()}" if said else ""
            raise UsageError(
                f"`npm pack onnxruntime-web@{VERSION}` failed{reason}",
                "check the network, or give a folder that holds onnxruntime-web: `--ort-web DIR`",
            )
        data = found[0].read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        raise _tampered("npm's package", "the package itself")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
            return {name: member.read() for name, member in members.items() if member is not None}
    except (tarfile.TarError, KeyError) as error:  # unreachable while the checksum holds
        raise OnnxCamError(f"npm's onnxruntime-web cannot be unpacked: {error}", "please report this") from error


def _compare(files: Mapping[str, bytes], source: str) -> None:
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != FILES[name]:
            raise _tampered(source, name)


def _tampered(source: str, name: str) -> VerificationError:
    return VerificationError(
        f"{source}: {name} is not that of onnxruntime-web {VERSION}: its checksum differs",
        "do not use it; fetch it again, from npm's own registry",
    )
