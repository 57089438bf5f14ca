"""A real headless Chromium in a namespace, by the DevTools protocol over a pair of pipes.

It resolves no name, keeps its profile in a directory of its own, and ends with its context. What
a page asks for, logs or throws is kept.
"""

import base64
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any, Self

from testbed import Namespace, wait_until

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
_TIMEOUT = 60.0  # a cold start beside other tests takes some 20
_PART = 1 << 16
_FIRST = 10


class Browser:
    """One browser with one tab. A context manager; AssertionError where the browser refuses."""

    def __init__(self, namespace: Namespace | None, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._directory.mkdir()
        reads, self._writer = _pipe()
        self._reader, writes = _pipe()
        # Chromium wants them as 3 and 4; bash can name descriptors of two digits, dash cannot.
        pipes = f'exec "$@" 3<&{reads} 4>&{writes} {reads}<&- {writes}>&-'
        profile = f"--user-data-dir={self._directory / 'profile'}"
        command = ["bash", "-c", pipes, "bash", "chromium", *_ARGUMENTS, profile, "about:blank"]
        with (self._directory / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._namespace.command(*command) if self._namespace else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reads, writes),
                start_new_session=True,
                env={**os.environ, "HOME": str(self._directory)},
            )
        os.close(reads)
        os.close(writes)
        try:
            self._open_tab()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end()

    def _end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own; nothing to be saved
        self._process.wait()
        os.close(self._writer)
        os.close(self._reader)
        shutil.rmtree(self._directory / "profile", ignore_errors=True)

    def _open_tab(self) -> None:
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session = self._call("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer of the tab to one command of the DevTools protocol."""
        return self._call(method, parameters, sessionId=self._session)

    def _call(self, method: str, parameters: Mapping[str, Any], **rest: str) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **rest}
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT
        while (answer := self._receive(deadline)).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._reader], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._reader, _PART) if ready else b""
            assert part, f"no answer: {(self._directory / 'chromium.log').read_text()[-2000:]}"
            self._received += part
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Be a window of this size, of a reader who likes it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go to a page; what it shows is there later."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript comes to, as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, *, timeout: float = 30) -> Any:
        """Return what an expression comes to once that is true."""
        return wait_until(lambda: self.evaluate(expression), timeout=timeout, what=expression)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        """Return how many elements match."""
        return int(self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Save what the window shows, or the whole page, as a PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def colours(self) -> Counter[bytes]:
        """Return how often each colour is in the window, at a quarter of its size."""
        size = {"width": self.evaluate("innerWidth"), "height": self.evaluate("innerHeight")}
        clip = {"x": 0, "y": 0, "scale": 0.25, **size}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip)
        return _colours(base64.b64decode(answer["data"]))

    def requests(self) -> list[str]:
        """Return every address that was asked for so far."""
        return [event["params"]["request"]["url"] for event in self._named("requestWillBeSent")]

    def complaints(self) -> list[dict[str, Any]]:
        """Return what was logged or thrown so far: by the page, or by the browser about it."""
        kinds = ("consoleAPICalled", "exceptionThrown", "entryAdded", "loadingFailed")
        return [event["params"] for kind in kinds for event in self._named(kind)]

    def _named(self, name: str) -> list[dict[str, Any]]:
        self.evaluate("0")  # takes in what has come meanwhile
        return [event for event in self.events if event.get("method", "").endswith(f".{name}")]


def _colours(png: bytes) -> Counter[bytes]:
    """Return the colours of a PNG of three bytes a pixel (W3C's specification, section 9)."""
    width, height, depth, kind = struct.unpack_from(">IIBB", png, 16)
    assert (depth, kind) == (8, 2), "expected 8 bits, RGB"
    data, at = b"", 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    rows, stride, above = zlib.decompress(data), 3 * width, bytes(3 * width)
    found: Counter[bytes] = Counter()
    for row in range(height):
        start = row * (stride + 1)
        above = _unfiltered(rows[start], rows[start + 1 : start + 1 + stride], above)
        found.update(above[at : at + 3] for at in range(0, stride, 3))
    return found


def _unfiltered(kind: int, row: bytes, above: bytes) -> bytes:
    """Return a row of pixels; `kind` says what was subtracted from each byte."""
    done = bytearray(3)  # as if there were a black pixel in front
    corner = bytes(3) + above
    for at, byte in enumerate(row):
        left, up, both = done[at], above[at], corner[at]
        guess = (0, left, up, (left + up) // 2, _paeth(left, up, both))[kind]
        done.append((byte + guess) & 0xFF)
    return bytes(done[3:])


def _paeth(left: int, up: int, both: int) -> int:
    """Return that of three neighbours which is nearest to their slope."""
    slope = left + up - both
    return min((left, up, both), key=lambda each: abs(slope - each))


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe, none of them 3 or 4."""
    ends = os.pipe()
    high = (fcntl(ends[0], F_DUPFD_CLOEXEC, _FIRST), fcntl(ends[1], F_DUPFD_CLOEXEC, _FIRST))
    for end in ends:
        os.close(end)
    return high
