"""CPU seconds (user and system, all threads) of whole processes, so that a busy machine does not count.

The modules are compiled, as pip leaves them: the first process may write what it compiles, whatever the environment
says, and does not count.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.measure import Row, Rows, Settings, seconds_row

CASES = (
    ("onnxcam --help", ("--help",), 0.1),
    ("onnxcam demo: bundled model to overlay on disk", ("demo",), 0.7),
)


def startup(settings: Settings) -> Rows:
    for case, arguments, target in CASES:
        try:
            seconds = [_cpu(arguments) for _ in range(4 if settings.quick else 12)][1:]
        except subprocess.CalledProcessError as error:
            yield Row("startup", case, note=f"failed: {error.stderr.decode().strip().splitlines()[-1:]}")
        else:
            yield seconds_row("startup", case, seconds, target)


def _cpu(arguments: tuple[str, ...]) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from onnxcam.cli import main; sys.exit(main())", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(command, cwd=Path(folder), check=True, capture_output=True, env=environment)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
