"""The thread that asks peers and answers theirs. It never holds up the control loop.

Peers are those that `Status` shows as programmed: to others there is no way, and a question would
leave by the default route. A port that is taken is tried again now and then, and `Status` says so.
"""

import logging
import os
import random
import select
import socket
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from kersey_control.addresses import gateway_of
from kersey_control.errors import UnavailableError
from kersey_control.forwarding import Condition
from kersey_control.options import Options
from kersey_control.probes.book import Book, Here, Outgoing, Refusal
from kersey_control.probes.sockets import AT_ONCE, ProbeSockets
from kersey_control.reach import Reach
from kersey_control.status import PeerState, ProbeCounts, Status
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds within which new peers are noticed."""

_NAMED = 5
"""So many peers are named in one line of the log."""

_PAUSE = 0.01
_RETRY = 5.0
_JOIN_TIMEOUT = 3.0


class Prober:
    """Probe while the context lasts, by what `status` shows."""

    def __init__(self, status: Status, options: Options) -> None:
        self._status = status
        self._port = options.probe_port
        self._interval, self._rate = float(options.probe_interval), float(options.probe_rate)
        self._token = int.from_bytes(os.urandom(8)) | 1
        self._lock = Lock()  # of what follows: the book is read by others
        self._here: Here | None = None
        self._book: Book | None = None
        self._seen: tuple[PeerState, ...] = ()
        self._uplink: Uplink | None = None
        self._plain: IPv4Address | None = None
        self._silent: frozenset[IPv4Network] = frozenset()
        self._look_at = 0.0
        self._is_ending = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> Self:
        self._status.reach = self._reaches
        self._status.probes = self._counts
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_JOIN_TIMEOUT)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _reaches(self) -> Mapping[IPv4Network, Reach]:
        with self._lock:
            if self._book is None or self._status.probes_trouble:
                return {}
            return self._book.reaches(time.monotonic())

    def _counts(self) -> ProbeCounts:
        with self._lock:
            sent = self._book.sent if self._book is not None else 0
            refused = self._book.refused if self._book is not None else {}
            return ProbeCounts(sent, {str(each): refused.get(each, 0) for each in Refusal})

    def _run(self) -> None:
        while not self._is_ending:
            try:
                with ProbeSockets(self._port) as sockets:
                    self._note("")
                    self._serve(sockets)
            except UnavailableError as error:
                self._note(str(error))
            except Exception:  # nobody else asks: begin again
                logger.exception("probes failed, starting them over")
            if not self._is_ending:
                select.select([self._wake], [], [], _RETRY)

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._status.probes_trouble:
            logger.error("peers are not probed, trying on", extra={"reason": trouble})
        self._status.probes_trouble = trouble

    def _serve(self, sockets: ProbeSockets) -> None:
        poller = select.poll()
        for number in (*sockets.filenos(), self._wake):
            poller.register(number, select.POLLIN)
        while not self._is_ending:
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK
                self._look()
            poller.poll(1 + 1000 * min(self._ask(sockets), _LOOK))
            self._take_in(sockets)

    def _look(self) -> None:
        """Notice what the control loop did, and log who fell silent or answers again."""
        with self._lock:
            self._follow()
            silent = self._book.silent if self._book is not None else frozenset()
        if fallen := silent - self._silent:
            logger.warning("peers do not answer", extra=_named(fallen))
        if risen := self._silent - silent:
            logger.info("peers are not silent any more", extra=_named(risen))
        self._silent = silent

    def _ask(self, sockets: ProbeSockets) -> float:
        """Send what is due; return after how many seconds there may be more."""
        with self._lock:
            if self._book is None:
                return _LOOK
            now = time.monotonic()
            questions, pause = list(self._book.due(now)), self._book.wait(now)
        for question in questions:
            self._send(sockets, question)
        return pause

    def _take_in(self, sockets: ProbeSockets) -> None:
        probes = replies = 0
        for data, sender, port in sockets.probes():
            probes += 1
            with self._lock:
                answer = self._receive(data, sender, port)
            if answer is not None:
                self._send(sockets, answer)
        for reply in sockets.replies():
            replies += 1
            with self._lock:
                if self._book is not None and reply is not None:
                    self._book.echoed(reply, time.monotonic())
        if AT_ONCE in (probes, replies):  # a flood must not take the interpreter from others
            time.sleep(_PAUSE)

    def _receive(self, data: bytes, sender: IPv4Address, port: int) -> Outgoing | None:
        if self._book is None:
            return None
        if port != self._port:  # not of a daemon
            self._book.refused[Refusal.OTHER_PORT] += 1
            return None
        return self._book.receive(data, sender, time.monotonic())

    def _send(self, sockets: ProbeSockets, outgoing: Outgoing) -> None:
        here = self._here
        inside = gateway_of(here.subnet) if here is not None else None
        source = self._plain if outgoing.is_plain else inside
        if outgoing.echo is None:
            sockets.send(outgoing.data, outgoing.to, source=source)
        else:
            sockets.ping(outgoing.echo, outgoing.data, outgoing.to, source=source)

    def _follow(self) -> None:
        """Bring the book up to date with what the control loop did."""
        status = self._status
        if status.uplink != self._uplink:
            self._uplink = status.uplink
            self._plain = _plain_source(status.uplink)
        if status.subnet is None or not status.ready:
            return
        here = Here(status.subnet, has_overlay=bool(status.device), token=self._token)
        if here != self._here:
            self._here, self._seen = here, ()
            self._book = Book(
                here,
                interval=self._interval,
                rate=self._rate,
                rng=random.Random(),  # noqa: S311  # spreads load, guards nothing
            )
        if status.peers is not self._seen and self._book is not None:
            self._seen = status.peers
            programmed = (
                state.peer for state in self._seen if state.condition == Condition.PROGRAMMED
            )
            self._book.follow(programmed, time.monotonic())


def _named(subnets: frozenset[IPv4Network]) -> dict[str, object]:
    return {"count": len(subnets), "peers": [str(each) for each in sorted(subnets)[:_NAMED]]}


def _plain_source(uplink: Uplink | None) -> IPv4Address | None:
    """Return the address that others know this node by, if it is one of its own; else None.

    Behind NAT it is not, and the route's own address serves.
    """
    if uplink is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((str(uplink.public_ip), 0))
        except OSError:
            return None
    return uplink.public_ip
