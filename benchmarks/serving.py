"""The serving example with and without maps: the same app, the same pictures, the plain and the exported model.

    python -m benchmarks.serving [MODEL --preprocess FILE --picture IMAGE] [--seconds S]

Two servers run beside each other. One client sends a request to each in turn over kept-alive connections (the median of
pairs is given), then four clients load one server at a time, in alternating rounds. Needs fastapi and uvicorn.
"""

import argparse
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnxcam import demo, export

APP = Path(__file__).parents[1] / "examples" / "serving" / "fastapi_app.py"


@contextmanager
def served(model: Path, *options: str) -> Iterator[int]:
    command = [sys.executable, str(APP), str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next((int(m[1]) for line in process.stderr if (m := re.search(r"127\.0\.0\.1:(\d+)", line))), None)
        if port is None:
            raise SystemExit(f"{model}: the server did not start")
        try:
            yield port
        finally:
            process.terminate()


def asked(connection: http.client.HTTPConnection, path: str, data: bytes) -> float:
    start = time.perf_counter()
    connection.request("POST", path, data)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(body.decode())
    return time.perf_counter() - start


def throughput(port: int, path: str, data: bytes, seconds: float, clients: int = 4) -> float:
    counts = [0] * clients
    end = time.perf_counter() + seconds

    def work(i: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < end:
            asked(connection, path, data)
            counts[i] += 1
        connection.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.FOLDER / "demo.onnx")
    parser.add_argument("--preprocess", metavar="FILE")
    parser.add_argument("--picture", type=Path, default=demo.PICTURES / "demo.jpg")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part (default %(default)s)")
    arguments = parser.parse_args()
    options = ["--preprocess", arguments.preprocess] if arguments.preprocess else []
    data = arguments.picture.read_bytes()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "exported.onnx"
        export(arguments.model, file, with_class=True, with_raw=True)
        plain, mine = (stack.enter_context(served(path, *options)) for path in (arguments.model, file))
        cases = {
            "plain model": (plain, "/explain"),
            "with the map": (mine, "/explain?heatmap=false"),
            "with the map in the answer": (mine, "/explain"),
            "overlay as JPEG": (mine, "/overlay"),
        }
        connections = {name: http.client.HTTPConnection("127.0.0.1", port) for name, (port, _) in cases.items()}
        times: dict[str, list[float]] = {name: [] for name in cases}
        end = time.perf_counter() + arguments.seconds
        while time.perf_counter() < end or len(times["plain model"]) < 20:
            for name, (_, path) in cases.items():
                times[name].append(asked(connections[name], path, data))
        rounds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(3):
            for name, (port, path) in cases.items():
                rounds[name].append(throughput(port, path, data, arguments.seconds / 12))
        print(f"{'':28}{'one client':>12}{'ratio':>8}{'four clients':>16}{'ratio':>8}")
        for name in cases:
            ratio = statistics.median(a / b for a, b in zip(times[name][5:], times["plain model"][5:], strict=True))
            rate = statistics.median(rounds[name])
            shown = f"{statistics.median(times[name][5:]) * 1e3:9.1f} ms{ratio:8.2f}{rate:14.0f}/s"
            print(f"{name:28}{shown}{statistics.median(rounds['plain model']) / rate:8.2f}")
        for connection in connections.values():
            connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
