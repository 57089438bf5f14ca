"""One TCP connection that carries data both ways all the time: what becomes of it and of its data.

Promises that every byte which comes back is compared with what was sent, in order, and that an end
of the connection, whoever made it, is in the report. The far end returns what it gets.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

from testbed.errors import ClusterError
from testbed.namespace import Namespace
from testbed.waiting import wait_until

_PIECE = 1000
_PATTERN = hashlib.shake_256(b"stream").digest(_PIECE * 64)
_INTERVAL = 0.005
_POLL = 0.1
_DRAIN = 20.0
_PART = 1 << 16


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What became of a stream, in bytes; `broken` says how it ended before its time, or is empty.

    `longest_gap` is in seconds, between two pieces that came back.
    """

    sent: int
    returned: int
    longest_gap: float
    broken: str


class Stream:
    """A running connection from one namespace to another; make one by `tcp_stream`."""

    def __init__(self, client: socket.socket, far: socket.socket) -> None:
        self._client = client
        self._far = far
        self._sent = 0
        self._returned = 0
        self._last = time.monotonic()
        self._gap = 0.0
        self._broken = ""
        self._stop_sending = threading.Event()
        self._stop_all = threading.Event()
        self._sender = threading.Thread(target=self._guarded, args=(self._send,), daemon=True)
        self._others = [
            threading.Thread(target=self._guarded, args=(each,), daemon=True)
            for each in (self._echo, self._compare)
        ]
        for thread in (*self._others, self._sender):
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def wait_flowing(self, pieces: int = 20, *, timeout: float = 20.0) -> None:
        """Return once `pieces` more have come back than now. Raises ClusterError if it broke."""
        goal = self._returned + pieces * _PIECE
        wait_until(
            lambda: self._returned >= goal or self._broken, timeout=timeout, what="more of a stream"
        )
        if self._broken:
            raise ClusterError(f"a stream broke: {self._broken}")

    def stop(self) -> StreamReport:
        """Stop sending, wait for what is under way, and return the report; again, the same one."""
        self._stop_sending.set()
        deadline = time.monotonic() + _DRAIN
        self._sender.join(_DRAIN)
        while self._returned < self._sent and not self._broken and time.monotonic() < deadline:
            time.sleep(_INTERVAL)
        self._stop_all.set()
        for thread in (self._sender, *self._others):
            thread.join()
        self._client.close()
        self._far.close()
        return StreamReport(self._sent, self._returned, self._gap, self._broken)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:  # a reset, or no way for too long
            self._broken = self._broken or repr(error)

    def _send(self) -> None:
        while not self._stop_sending.wait(_INTERVAL):
            at = self._sent % len(_PATTERN)
            self._put(self._client, _PATTERN[at : at + _PIECE])
            self._sent += _PIECE

    def _echo(self) -> None:
        while (part := self._receive(self._far)) is not None:
            self._put(self._far, part)

    def _compare(self) -> None:
        while (part := self._receive(self._client)) is not None:
            now = time.monotonic()
            self._gap, self._last = max(self._gap, now - self._last), now
            at = self._returned % len(_PATTERN)
            expected = (_PATTERN * (len(part) // len(_PATTERN) + 2))[at : at + len(part)]
            if part != expected:
                self._broken = f"other bytes than those sent, at {self._returned}"
                return
            self._returned += len(part)

    def _put(self, end: socket.socket, part: bytes) -> None:
        """Send it all, however long that takes while nobody stops us. Raises OSError."""
        while part and not self._stop_all.is_set():
            try:
                part = part[end.send(part) :]
            except TimeoutError:
                continue

    def _receive(self, end: socket.socket) -> bytes | None:
        """Return the next bytes; None at the end that `stop` makes. Raises OSError for another."""
        while not self._stop_all.is_set():
            try:
                part = end.recv(_PART)
            except TimeoutError:
                continue
            if not part:
                raise ConnectionError("closed by the other end")
            return part
        return None


def tcp_stream(
    source: Namespace, destination: Namespace, address: IPv4Address, *, port: int = 5002
) -> Stream:
    """Start a stream to `address`, which must lead into `destination`. Raises OSError."""
    with destination.call(lambda: socket.create_server(("", port))) as server:
        client = source.call(lambda: socket.create_connection((str(address), port), _DRAIN))
        far, _peer = server.accept()
    for end in (client, far):
        end.settimeout(_POLL)
    return Stream(client, far)
