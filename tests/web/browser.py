"""Chromium without a window, driven over its DevTools protocol through two pipes: no WebSocket, no driver program."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

FLAGS = [
    "--headless", "--no-sandbox",  # containers have no user namespaces
    "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-extensions", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip

# Chromium reads file descriptor 3 and writes 4, whichever the pipes have here.
_START = """import os, sys
high = [os.dup2(int(fd), 100 + i) for i, fd in enumerate(sys.argv[1:3])]
for fd, target in zip(high, (3, 4)): os.dup2(fd, target)
os.execv(sys.argv[3], sys.argv[3:])"""


class Browser:
    """One Chromium process and one page. `requests`: the address of everything that page and workers asked for."""

    def __init__(self, *flags: str, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.requests: list[str] = []
        self.console: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={self._profile.name}", "about:blank"]
        start = [sys.executable, "-c", _START, str(theirs), str(answers), *command]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(start, pass_fds=(theirs, answers), stdout=quiet, stderr=quiet)
        os.close(theirs)
        os.close(answers)
        self._buffer = b""
        self._count = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._session = ""
        try:
            target = self._send("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
            attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "DOM"):
                self.send(f"{domain}.enable")
            self.send("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> Any:
        """A command to the page; its result."""
        return self._send(method, parameters, self._session)

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression, a promise awaited."""
        done = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + self.timeout
        while not self.evaluate(f"!!({condition})"):
            if time.monotonic() > end:
                text = self.evaluate("document.body.innerText")
                raise AssertionError(f"never: {condition}\n{text}\n{self.console}")
            time.sleep(0.02)

    def press(self, key: str, code: int = 0, shift: bool = False) -> None:
        codes = {"Tab": 9, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35, "Escape": 27, "ArrowRight": 39}
        codes |= {"ArrowLeft": 37, " ": 32, "Enter": 13}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, code), "modifiers": 8 * shift}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": key} if key == " " else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def give_file(self, selector: str, path: Path) -> None:
        """As if chosen in the file dialogue."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> Any:
        number = self._post(method, parameters, session)
        end = time.monotonic() + self.timeout
        while number not in self._answers:
            self._receive(end - time.monotonic(), method)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _post(self, method: str, parameters: dict[str, Any], session: str | None) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._count

    def _receive(self, seconds: float, method: str) -> None:
        if not select.select([self._from], [], [], max(0.0, seconds))[0]:
            raise AssertionError(f"{method}: Chromium does not answer")
        data = os.read(self._from, 1 << 20)
        assert data, f"{method}: Chromium has left"
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._happened(message["method"], message["params"])

    def _happened(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.console.append(json.dumps(facts)[:2000])
        elif event == "Target.attachedToTarget":  # a worker, held until its requests are watched too
            inner = facts["sessionId"]
            settings = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
            for method, parameters in (
                ("Network.enable", {}),
                ("Runtime.enable", {}),
                ("Target.setAutoAttach", settings),
                ("Runtime.runIfWaitingForDebugger", {}),
            ):
                self._post(method, parameters, inner)
