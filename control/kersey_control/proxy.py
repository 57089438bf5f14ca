"""The complete slow path of a tunnel without a kernel device: packets pumped by a thread.

Promises a thread that no packet can end, that ends at once when told to, and that leaves the other
threads their share of the interpreter. It changes no device, route or rule.
"""

import logging
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address
from threading import Thread, current_thread
from types import TracebackType
from typing import Self

from kersey_control.carriers import Carrier
from kersey_control.node_table import Table
from kersey_control.options import SpoofCheck
from kersey_control.pump import Answers, Counters, Ends, Incoming, Outgoing, Tally
from kersey_control.tun import Tun, TunGoneError

logger = logging.getLogger(__name__)

_PAUSE = 0.0001
_AFTER_FAILURE = 0.1  # seconds


class _IcmpSender:
    """A socket for whole IPv4 packets that only sends.

    Written into the TUN device, an ICMP error would be dropped as a martian, since its source is an
    address of this host.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, packet: bytes) -> None:
        self._socket.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


class Proxy:
    """Pump packets between a TUN device and a carrier, on a thread of its own. A context manager.

    `address` is the TUN's own: the source of ICMP errors. `hops` is what each end takes from the
    inner TTL: 1 as flannel's udp does, 0 for ipip. When the device is deleted, `on_gone` is called
    once, from the thread, which then ends. Device and carrier stay their owner's; another uplink
    address means another carrier and another proxy. Works in the network namespace of the thread
    that makes it.
    """

    def __init__(
        self,
        tun: Tun,
        carrier: Carrier,
        *,
        table: Table,
        address: IPv4Address,
        hops: int,
        check: SpoofCheck = SpoofCheck.DROP,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._table = table
        self._tally = Tally()
        self._on_gone = on_gone
        self._resources = ExitStack()
        sender = self._resources.enter_context(_IcmpSender())
        answers = Answers(address, self._tally, send=sender.send, clock=time.monotonic)
        ends = Ends(tun, carrier, hops, answers, self._tally)
        self._outgoing, self._incoming = Outgoing(ends), Incoming(ends, check)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._resources.callback(os.close, self._stop)
        self._tun, self._carrier = tun, carrier
        self._thread = Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to pump; what has waited in the device's queue goes first."""
        self._thread.start()
        self._resources.callback(self._end)

    def close(self) -> None:
        """Stop at once, and wait for the thread; twice without harm."""
        self._resources.close()

    @property
    def is_running(self) -> bool:
        """Whether packets are being pumped."""
        return self._thread.is_alive()

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        return self._tally.snapshot()

    def use(self, table: Table) -> None:
        """Decide by another table from the next batch on."""
        self._table = table

    def _end(self) -> None:
        os.eventfd_write(self._stop, 1)
        if current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        poller = select.poll()
        for source in (self._tun, self._carrier, self._stop):
            poller.register(source, select.POLLIN)
        try:
            while not self._is_stopped(poller):
                pass
        except TunGoneError as error:
            logger.warning("proxy ends", extra={"reason": str(error)})
            self._report()

    def _is_stopped(self, poller: select.poll) -> bool:
        """Wait for packets and carry a batch of each direction; return whether it is the end."""
        ready = [descriptor for descriptor, _ in poller.poll()]
        if self._stop in ready:
            return True
        try:
            more = self._tun.fileno() in ready and self._outgoing.carry(self._table)
            more |= self._carrier.fileno() in ready and self._incoming.carry(self._table)
        except TunGoneError:
            raise
        except Exception:  # no packet may end the thread
            self._tally.failures += 1
            logger.exception("packet not handled", extra={"failures": self._tally.failures})
            time.sleep(_AFTER_FAILURE)  # a fault that lasts must not fill the log
        else:
            if more:
                time.sleep(_PAUSE)
        return False

    def _report(self) -> None:
        try:
            self._on_gone()
        except Exception:  # the thread ends in order all the same
            logger.exception("end of the device not handled")
