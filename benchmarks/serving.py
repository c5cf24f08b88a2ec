"""The serving example with and without maps: the same app, the same pictures, the plain and the exported model.

    python -m benchmarks.serving [MODEL --preprocess FILE --picture IMAGE] [--requests N]

Two servers run beside each other. One client sends a request to each in turn over kept-alive connections (the median of
pairs is given), then four clients load one server at a time, in alternating rounds: CPU time that the server takes for
a request, read from /proc (Linux), which other programs on the machine disturb little. Needs fastapi and uvicorn.
"""

import argparse
import http.client
import os
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
def served(model: Path, *options: str) -> Iterator[tuple[int, int]]:
    """(process id, port) of a server."""
    command = [sys.executable, str(APP), str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next((int(m[1]) for line in process.stderr if (m := re.search(r"127\.0\.0\.1:(\d+)", line))), None)
        if port is None:
            raise SystemExit(f"{model}: the server did not start")
        try:
            yield process.pid, port
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


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(process: int, port: int, path: str, data: bytes, requests: int, clients: int = 4) -> float:
    """CPU seconds of the server for one request, while several clients wait for it."""

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(requests // clients):
            asked(connection, path, data)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = cpu_seconds(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (cpu_seconds(process) - start) / (requests // clients * clients)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=demo.FOLDER / "demo.onnx")
    parser.add_argument("--preprocess", metavar="FILE")
    parser.add_argument("--picture", type=Path, default=demo.PICTURES / "demo.jpg")
    parser.add_argument("--requests", type=int, default=200, help="per round and case (default %(default)s)")
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
        connections = {name: http.client.HTTPConnection("127.0.0.1", port) for name, ((_, port), _) in cases.items()}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(arguments.requests):
            for name, (_, path) in cases.items():
                times[name].append(asked(connections[name], path, data))
        rounds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(5):
            for name, (server, path) in cases.items():
                rounds[name].append(loaded(*server, path, data, arguments.requests))
        print(f"{'':28}{'one client':>12}{'ratio':>8}{'CPU, four clients':>20}{'ratio':>8}")
        for name in cases:
            ratio = statistics.median(a / b for a, b in zip(times[name][5:], times["plain model"][5:], strict=True))
            cpu = statistics.median(a / b for a, b in zip(rounds[name], rounds["plain model"], strict=True))
            shown = f"{statistics.median(times[name][5:]) * 1e3:9.1f} ms{ratio:8.2f}"
            print(f"{name:28}{shown}{statistics.median(rounds[name]) * 1e3:17.1f} ms{cpu:8.2f}")
        for connection in connections.values():
            connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
