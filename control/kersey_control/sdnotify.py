"""What the service manager is told (sd_notify(3)). Without one, every call does nothing.

Never raises for a failed message: a service manager that does not listen is no reason to stop.
"""

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class ServiceManager:
    """Send state changes to the socket that `NOTIFY_SOCKET` names, a path or `@abstract`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._watchdog = _watchdog_seconds(environ)

    @property
    def watchdog_seconds(self) -> float | None:
        """Return how long the manager waits for `alive` before it kills us; None for ever."""
        return self._watchdog

    def ready(self, status: str) -> None:
        """Report that start-up is done."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """Report what the daemon is doing, for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def stopping(self) -> None:
        """Report that shutdown has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)  # a full queue must not hold up the control loop
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            logger.debug("service manager not notified", extra={"reason": str(error)})


def _line(text: str) -> str:
    """Return `text` as one line, since each line of a message is an assignment of its own."""
    return " ".join(text.split())


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return WATCHDOG_USEC in seconds, unless it is meant for another process (WATCHDOG_PID)."""
    micros = environ.get("WATCHDOG_USEC", "")
    if not (micros.isascii() and micros.isdigit() and int(micros)):
        return None
    return int(micros) / 1e6 if environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())} else None
