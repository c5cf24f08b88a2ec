"""`python -m benchmarks.soak [--explanations N]`: many explanations in one process, and the memory that it holds.

Several explainers of the demo model (a graph with gradients, one finished on the host, one that runs the model many
times) take pictures and tensors in turn, and now and then one is made anew. Resident memory is read as it goes.
"""

import argparse
import gc
import os
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
METHODS = ("gradcam", "hirescam", "eigencam", "saliency", "ablationcam", "scorecam")


def _resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--explanations", type=int, default=10_000)
    count = parser.parse_args().explanations

    from onnxcam.explainer import Explainer
    from onnxcam.methods import METHODS as KNOWN
    from onnxcam.picture import load_picture

    model = ROOT / "models" / "demo.onnx"
    pictures = sorted((ROOT / "models" / "pictures").glob("*.jpg")) + sorted(
        (ROOT / "models" / "pictures").glob("*.png")
    )
    names = list(METHODS)
    explainers = {name: Explainer(model, method=name, threads=1) for name in names}
    tensor = np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)
    # Methods that run the model many times take their turn less often.
    turns = [n for n in names for _ in range(1 if KNOWN[n].loop is not None else 40)]
    first, begun, remade, seen = {}, time.monotonic(), 0, []
    print(f"methods {', '.join(names)}; {len(pictures)} pictures", flush=True)
    for done in range(1, count + 1):
        name = turns[done % len(turns)]
        which = done % 4
        source = pictures[done // 4 % len(pictures)]
        if which == 0:
            (explanation,) = explainers[name].explain_tensor(tensor)
        elif which == 1:
            explanation = explainers[name](load_picture(source))
        else:
            explanation = explainers[name](source)
        if which == 2:
            explanation.overlay()
            explanation.record()
        key = (name, None if which == 0 else source.name)
        same = first.setdefault(key, explanation.raw.tobytes())
        assert same == explanation.raw.tobytes(), f"{key} changed at explanation {done}"
        if done % 500 == 0:
            explainers[name] = Explainer(model, method=name, threads=1)
            remade += 1
        if done % (count // 10) == 0:
            gc.collect()
            seen.append(_resident())
            rate = done / (time.monotonic() - begun)
            print(f"{done:6d} explanations, {seen[-1]:.1f} MiB, {rate:.0f}/s", flush=True)
    print(f"{remade} explainers made anew; every map the same bytes each time")
    print(f"from the second tenth to the last: {seen[-1] - seen[1]:+.1f} MiB")


if __name__ == "__main__":
    main()
