"""Real classifiers in a real browser: are scores, class and map Python's? A table for docs/explain-in-the-browser.md.

    python -m tests.web.every_model [--ort-web DIR] [NAME ...]

Reads `shared/models` and the photographs beside the repository. Every model's site is opened in Chromium and given two
photographs without loss; each is explained for the predicted class and for class 1. tensor: how many of its values
differ from Python's. scores: largest difference as a share of the largest. map: largest difference on maps in [0, 1].
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.real import MODELS, QUANTISED, SHARED, Model, shots
from PIL import Image
from tests.web.browser import Browser

from onnxcam import Explainer
from onnxcam.web.local_server import local_server
from onnxcam.web.site import write_site


def row(model: Model, browser: Browser, work: Path, ort_web: str | None) -> list[str]:
    path = SHARED / "models" / model.file
    options: dict[str, Any] = {"preprocess": dict(model.preprocess), "threads": 1}
    write_site(path, work / "site", ort_web=ort_web, **options)
    explainer = Explainer(path, **options)
    server = local_server(work / "site", 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    tensors, scores, maps, same, milliseconds = 0, 0.0, 0.0, True, 0.0
    try:
        browser.open("about:blank")
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.wait("globalThis.onnxcam?.ready !== undefined")
        for shot in shots(model.shots)[:2]:
            Image.fromarray(shot.picture.rgb).save(work / "picture.png")
            x, _ = explainer.preprocess(shot.picture)
            for target in (None, 1):
                browser.evaluate("globalThis.before = onnxcam.last; 0")
                if target is None:
                    browser.give_file("#file", work / "picture.png")
                else:
                    browser.evaluate(
                        """{ const row = document.querySelector('#classes li'); row.dataset.index = 1; row.click(); }"""
                    )
                browser.wait("(onnxcam.last && onnxcam.last !== before) || !document.getElementById('alert').hidden")
                wrong = browser.evaluate("document.getElementById('alert').textContent")
                if wrong:
                    return [model.file, "fails", "", "", "", wrong[:150]]
                got = browser.evaluate(
                    "({...onnxcam.last, scores: [...onnxcam.last.scores], heatmap: [...onnxcam.last.heatmap],"
                    " tensor: Array.from(onnxcam.last.tensor, Number)})"
                )
                (expected,) = explainer.explain_tensor(x, target)
                tensors += int((np.asarray(got["tensor"]) != x.ravel().astype(np.float64)).sum())
                wanted = expected.scores.astype(np.float64)
                scores = max(scores, float(np.abs(got["scores"] - wanted).max() / np.abs(wanted).max()))
                maps = max(
                    maps, float(np.abs(np.reshape(got["heatmap"], expected.values.shape) - expected.values).max())
                )
                same &= got["classIndex"] == expected.class_index
                milliseconds = got["milliseconds"]
    finally:
        server.shutdown()
        server.server_close()
    return [model.file, str(tensors), f"{scores:.0e}", "yes" if same else "no", f"{maps:.0e}", f"{milliseconds:.0f} ms"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.web.every_model", description=__doc__)
    parser.add_argument("--ort-web", metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of file names (default: all)")
    arguments = parser.parse_args()
    chosen = [m for m in (*MODELS, *QUANTISED) if not arguments.names or any(n in m.file for n in arguments.names)]
    print("| model | tensor | scores | class | map | one run |\n|---|---|---|---|---|---|")
    failed = False
    with Browser() as browser:
        for model in chosen:
            with tempfile.TemporaryDirectory() as folder:
                cells = row(model, browser, Path(folder), arguments.ort_web)
            failed |= cells[1] == "fails"
            print("| " + " | ".join(cells) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
