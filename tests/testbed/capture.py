"""Raw frames as an interface sees them, without tcpdump. It only listens."""

import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

from testbed.namespace import Namespace

_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33  # missing from the socket module
_RECEIVE_BUFFER = 32 << 20
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # missing from the socket module
_STATISTICS = struct.Struct("II")
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, Ethernet header first, as a packet socket gives it.

    VLAN tags are not in `raw`, offloaded packets are as large as the stack made them, and checksums
    may still be unfinished.
    """

    at: float
    """time.monotonic() when it was read, shortly after it passed."""
    outgoing: bool
    raw: bytes


class Capture:
    """Collects all frames of one interface, both directions, from its making until `stop`."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        self._socket = namespace.call(lambda: _packet_socket(interface))
        self._frames: list[Frame] = []
        self._stop = threading.Event()
        self._passed = 0  # on an interface that is never quiet, reading must end too
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def frames(self) -> list[Frame]:
        """A copy of what was captured so far: wait for a frame in it, not for time to pass."""
        return list(self._frames)

    def stop(self) -> list[Frame]:
        """Stop once what passed before this call is read; return all frames."""
        if not self._stop.is_set():
            self._passed = _frames_passed(self._socket)
            self._stop.set()
        self._reader.join()
        self._socket.close()
        return self.frames

    def _read(self) -> None:
        while True:
            stopping = self._stop.is_set()  # asked before reading, so that the queue is emptied
            if stopping and len(self._frames) >= self._passed:
                return
            try:
                raw, sender = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                if stopping:
                    return
                continue
            self._frames.append(Frame(time.monotonic(), sender[2] == _PACKET_OUTGOING, raw))


def _frames_passed(packets: socket.socket) -> int:
    """Return how many frames the socket has taken in since it was bound; asked once only.

    The kernel counts those that found no room in the buffer among all.
    """
    raw = packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
    taken, dropped = _STATISTICS.unpack(raw)
    return int(taken - dropped)


def _packet_socket(interface: str) -> socket.socket:
    # Protocol 0 until bound: otherwise frames of other interfaces get in first.
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    packets.settimeout(_POLL)
    packets.bind((interface, _ETH_P_ALL))
    return packets
