"""Tell when somebody commits a change to the kernel's nf_tables rules, iptables-nft included.

Only that something changed, not what: the listener looks for itself. It never changes rules, and it
cannot see legacy iptables, which sends no events. Our own changes are reported like any other.
"""

import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NEW_GENERATION = 10 << 8 | 15
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN: sent once at the end of each commit (kernel 3.18)."""

_HEADER = struct.Struct("=IHHII")
_DATAGRAM = 65536
"""Bytes; more than the kernel puts into one notification."""


class RulesetMonitor:
    """Call `on_change` from an own thread after commits; one call may stand for many of them.

    It listens in the network namespace of the thread that enters it. A lost event (ENOBUFS) counts
    as a change. Leaving waits for a call that is running.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._resources = ExitStack()
        self.failures = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            listener = opened.enter_context(_open_listener())
            stop = os.eventfd(0, os.EFD_CLOEXEC)
            opened.callback(os.close, stop)
            thread = Thread(target=self._listen, args=(listener, stop), name="ruleset-monitor")
            thread.daemon = True  # an exit without __exit__ must not hang
            thread.start()
            opened.callback(thread.join)
            opened.callback(os.eventfd_write, stop, 1)
            self._resources = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def _listen(self, listener: socket.socket, stop: int) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(stop, select.POLLIN)
        while stop not in (ready := {fd for fd, _ in poller.poll()}):
            if ready and _drain(listener):
                self._report()

    def _report(self) -> None:
        try:
            self._on_change()
        except Exception:  # one failed look must not make us deaf to the next change
            self.failures += 1
            logger.exception("ruleset change not handled", extra={"failures": self.failures})


def _open_listener() -> socket.socket:
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    listener.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    return listener


def _drain(listener: socket.socket) -> bool:
    """Read all that is queued and return whether a commit was among it."""
    changed = False
    while True:
        try:
            changed |= _NEW_GENERATION in _message_types(listener.recv(_DATAGRAM))
        except BlockingIOError:
            return changed
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed = True  # events were lost, and nobody knows which


def _message_types(datagram: bytes) -> Iterator[int]:
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, offset)
        yield kind
        offset += max((length + 3) & ~3, _HEADER.size)
