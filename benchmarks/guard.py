"""Is this tree slower than the one it branched from? `python -m benchmarks.guard [--base REF] [--limit 1.05]`.

Both are built into folders of their own and explain in turns, one process each, on one thread and by CPU time; what is
compared is the ratio of neighbours. Exit code 1 where a case is slower than the limit by more than its spread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = ("ResNet-50 gradcam", "MobileNetV2 gradcam", "MobileNetV2 saliency", "MobileNetV2 rewrite")

# Answers each case name on stdin with the CPU seconds of one call.
WORKER = """
import sys, time
from benchmarks.graphs import NETWORKS, pictures
from onnxcam import Explainer, rewrite
x, ready = pictures(1), {}
def call(case):
    name, what = case.split()
    if case not in ready:
        model = NETWORKS[name]()
        explainer = None if what == "rewrite" else Explainer(model, method=what, threads=1)
        ready[case] = (lambda: rewrite(model)) if what == "rewrite" else (lambda: explainer.explain_tensor(x))
        ready[case](), ready[case]()
    start = time.process_time()
    ready[case]()
    return time.process_time() - start
for line in sys.stdin:
    print(call(line.strip()), flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description="Compare with the merge base.")
    parser.add_argument("--base", help="a commit (default: the merge base with main, or the parent commit on main)")
    parser.add_argument("--limit", type=float, default=1.05, help="how much slower is too slow (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=25, help="of calls per case (default %(default)s)")
    arguments = parser.parse_args()
    base = arguments.base or _merge_base()
    slow = []
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        _git("worktree", "add", "--detach", str(before), base)
        try:
            workers = [_worker(_installed(tree, Path(scratch) / f"{i}")) for i, tree in enumerate((before, ROOT))]
            print(f"this tree against {base[:12]}, CPU time, median of {arguments.pairs} pairs (quartiles)")
            for case in CASES:
                pairs = [_pair(workers, case, swap=i % 2 == 1) for i in range(arguments.pairs + 2)][2:]
                low, middle, high = statistics.quantiles([new / old for old, new in pairs], n=4)
                verdict = "slower" if low > arguments.limit else "ok"
                print(f"{case:<24} {middle:.3f}x ({low:.3f}-{high:.3f})  {verdict}", flush=True)
                slow += [case] if verdict == "slower" else []
            for worker in workers:
                worker.communicate()
        finally:
            _git("worktree", "remove", "--force", str(before))
    return 1 if slow else 0


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _merge_base() -> str:
    found = _git("merge-base", "HEAD", "main")
    return _git("rev-parse", "HEAD~1") if found == _git("rev-parse", "HEAD") else found


def _installed(tree: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(tree)]
    subprocess.run(command, check=True)
    return folder


def _worker(installed: Path) -> subprocess.Popen[str]:
    # The same benchmark code for both: this tree's.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT))), "OMP_NUM_THREADS": "1"}
    start = f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n{WORKER}"
    return subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _pair(workers: list[subprocess.Popen[str]], case: str, swap: bool) -> tuple[float, float]:
    """CPU seconds of one call before and after."""
    taken = [0.0, 0.0]
    for i in (1, 0) if swap else (0, 1):
        sender, answers = workers[i].stdin, workers[i].stdout
        assert sender is not None and answers is not None
        sender.write(case + "\n")
        sender.flush()
        answer = answers.readline()
        if not answer:
            raise SystemExit(f"`{case}` failed in {('the base', 'this tree')[i]}, see above")
        taken[i] = float(answer)
    return taken[0], taken[1]


if __name__ == "__main__":
    sys.exit(main())
