"""Sent to the machines: numbered datagrams from one pod to another and back, one JSON object out.

Arguments: `echo PORT FILE LIMIT`, or `send ADDRESS PORT RATE FILE LIMIT`. It goes on for as long as
FILE exists, for LIMIT seconds at most. `send` makes FILE.flows when the first answer is there, and
counts from then on. The standard library alone; runs by itself.
"""

import contextlib
import json
import select
import socket
import struct
import sys
import time
from pathlib import Path

NUMBER = struct.Struct("!Q")
PAYLOAD = bytes(56)
TICK = 0.002
BURST = 20
"""Datagrams sent at once at most: a machine that stood still does not make up for it."""

BUFFER = 8 << 20
"""Bytes that wait for a process which the machine has no time for; this is no test of that."""

SO_RCVBUFFORCE = 33
DRAIN = 3.0


def goes_on(path: Path, deadline: float) -> bool:
    """Return whether the load shall go on."""
    return time.monotonic() < deadline and path.exists()


def open_socket() -> socket.socket:
    """Return a socket that datagrams wait in, however late they are fetched. Needs root."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    return made


def echo(port: int, path: Path, limit: float) -> None:
    """Send back whatever comes."""
    server = open_socket()
    server.bind(("", port))
    deadline = time.monotonic() + limit
    echoed = 0
    while goes_on(path, deadline):
        if select.select([server], [], [], 0.2)[0]:
            packet, sender = server.recvfrom(65535)
            server.sendto(packet, sender)
            echoed += 1
    print(json.dumps({"echoed": echoed}))


class Sender:
    """Numbers that were sent, and those that came back."""

    def __init__(self, address: str, port: int) -> None:
        self.udp = open_socket()
        self.udp.setblocking(False)
        self.target = (address, port)
        self.sent = 0
        self.returned: set[int] = set()
        self.last = time.monotonic()
        self.longest_gap = 0.0

    def send(self) -> None:
        """Send the next number; one that cannot leave is lost like any other."""
        with contextlib.suppress(OSError):
            self.udp.sendto(NUMBER.pack(self.sent) + PAYLOAD, self.target)
        self.sent += 1

    def collect(self, seconds: float) -> None:
        """Take what has come back, waiting for so long for the first."""
        while select.select([self.udp], [], [], seconds)[0]:
            try:
                packet = self.udp.recv(65535)
            except OSError:  # an ICMP error for a packet that is lost
                continue
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self.last)
            self.last = now
            self.returned.add(NUMBER.unpack_from(packet)[0])
            seconds = 0.0


def send(address: str, port: int, rate: float, path: Path, limit: float) -> None:
    """Send `rate` packets a second from the first answer on, and print what was lost of them."""
    sender = Sender(address, port)
    deadline = time.monotonic() + limit
    while not sender.returned and goes_on(path, deadline):  # the other end may not be there yet
        sender.send()
        sender.collect(0.2)
    path.with_name(f"{path.name}.flows").touch()
    skipped = sender.sent
    sender.returned.clear()
    sender.last = started = time.monotonic()
    sender.longest_gap = 0.0
    due = float(skipped)
    while goes_on(path, deadline):
        now = time.monotonic()
        due, started = min(due + (now - started) * rate, sender.sent + BURST), now
        while sender.sent < due:
            sender.send()
        sender.collect(TICK)
    drained = time.monotonic() + DRAIN
    wanted = set(range(skipped, sender.sent))
    while wanted - sender.returned and time.monotonic() < drained:
        sender.collect(0.1)
    print(
        json.dumps(
            {
                "sent": len(wanted),
                "lost": len(wanted - sender.returned),
                "longest_gap_ms": round(1000 * sender.longest_gap, 1),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        port, path, limit = sys.argv[2:]
        echo(int(port), Path(path), float(limit))
    else:
        address, port, rate, path, limit = sys.argv[2:]
        send(address, int(port), float(rate), Path(path), float(limit))
