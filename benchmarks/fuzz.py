"""`python -m benchmarks.fuzz --minutes N [--surfaces models ...]`: damaged files until the time is over, and what came.

Every case runs in a worker process with a limit of memory and time: a crash of the worker, a case that takes too long,
and an error that is not a designed one are each reported with the number that makes it again:
`python -m benchmarks.fuzz --case models:123`.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from select import select

CASES = Path(__file__).parents[1] / "tests" / "fuzz"
MEMORY = 8 * 2**30
SECONDS = 60


def _worker(surface: str, first: int) -> None:
    """Cases from `first` on; a line of JSON before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.path.insert(0, str(CASES))
    from surfaces import attempt

    warnings.simplefilter("error")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    number = first
    while True:
        out.write(json.dumps({"begun": number}) + "\n")
        try:
            outcome = {"number": number, "outcome": attempt(surface, number)}
        except Exception:
            outcome = {"number": number, "outcome": "escaped", "trace": traceback.format_exc()}
        out.write(json.dumps(outcome) + "\n")
        number += 1


def fuzz(
    surface: str, seconds: float, first: int = 0, cases: float = math.inf
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """How many cases ended how, and (number, trace) of those that are faults. cases: at most so many."""
    counts: Counter[str] = Counter()
    faults: list[tuple[int, str]] = []
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end and counts.total() < cases:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", surface, "--first", str(number)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=CASES.parents[1])
        assert worker.stdout is not None
        pending = b""
        limit = 4 * SECONDS  # the first case imports the package
        while time.monotonic() < end and counts.total() < cases:
            ready, _, _ = select([worker.stdout], [], [], limit)
            chunk = os.read(worker.stdout.fileno(), 2**16) if ready else b""
            if not chunk:
                said = f"no end within {limit} s" if not ready else f"the process died with {worker.wait()}"
                faults.append((number, said))
                counts["no end" if not ready else "crashed"] += 1
                number += 1
                break
            limit = SECONDS
            *lines, pending = (pending + chunk).split(b"\n")
            for line in map(json.loads, lines):
                if "begun" in line:
                    number = line["begun"]
                    continue
                if counts.total() == cases:
                    break
                counts[line["outcome"]] += 1
                if line["outcome"] == "escaped":
                    faults.append((line["number"], line["trace"]))
        worker.kill()
        worker.communicate()
    return counts, faults


def main() -> None:
    sys.path.insert(0, str(CASES))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--surfaces", nargs="*")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", help="SURFACE:NUMBER, in this process")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _worker(arguments.worker, arguments.first)
    from surfaces import SURFACES, attempt

    if arguments.case:
        surface, number = arguments.case.split(":")
        print(attempt(surface, int(number)))
        return
    surfaces = arguments.surfaces or list(SURFACES)
    weights = {s: 4 if s == "models" else 1 for s in surfaces}
    failed = 0
    for surface in surfaces:
        seconds = 60 * arguments.minutes * weights[surface] / sum(weights.values())
        counts, faults = fuzz(surface, seconds, arguments.first)
        ended = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"{surface}: {sum(counts.values())} cases in {seconds / 60:.1f} minutes: {ended}", flush=True)
        seen: Counter[str] = Counter()
        for number, trace in faults:
            frames = [line for line in trace.splitlines() if "onnxcam/" in line]
            last = trace.strip().splitlines()[-1][:300]
            key = (frames[-1].strip() if frames else "") + last.split(":")[0]
            seen[key] += 1
            if seen[key] == 1:
                print(f"  {surface}:{number}: {frames[-1].strip() if frames else ''} {last}", flush=True)
        print("".join(f"    {count}x {key}\n" for key, count in seen.most_common()), end="")
        failed += len(faults)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
