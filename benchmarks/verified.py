"""`python -m benchmarks.verified [MODEL ...]`: the gradient of every shared model against central differences, at the
layer that `onnxcam check` shows.

Without arguments: all models in `shared/models` beside the repository.
"""

import sys
import time
from pathlib import Path

from onnxcam import OnnxCamError
from onnxcam.detection.read import checked
from onnxcam.verify import verify

SHARED = Path(__file__).parents[2] / "shared" / "models"


def main() -> int:
    files = [Path(a) for a in sys.argv[1:]] or sorted(SHARED.glob("*.onnx"))
    failed = 0
    print("| model | layer | verified | error | oracle | step | s |\n|---|---|---|---|---|---|---|")
    for file in files:
        start = time.perf_counter()
        try:
            _, report = checked(file)
            shown = report.automatic.layer.name if report.automatic is not None else None
            v = verify(report.file, layer=shown, scores=report.scores, size=report.size)
        except OnnxCamError as error:
            failed += 1
            print(f"| {file.stem} | | no: {error.message} | | | | |")
            continue
        failed += not v.verified
        said = "yes" if v.verified else "NO"
        print(f"| {file.stem} | {v.layer} | {said} | {v.error:.1e} | {v.oracle} | {v.step:g} "
              f"| {time.perf_counter() - start:.1f} |")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
