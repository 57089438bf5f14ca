"""The daemon's state for `kersey status`: one JSON object per connection, for root only.

Served from a thread of its own out of `Status`, so that it answers while the control loop hangs,
and says so. Takes no input.
"""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

from kersey_control import __version__
from kersey_control.errors import InvalidInputError, UnavailableError
from kersey_control.status import Status

logger = logging.getLogger(__name__)

SOCKET_FILE = "kerseyd.sock"
"""The name of the socket in the state directory."""

_TIMEOUT = 2.0


def describe(status: Status) -> dict[str, Any]:
    """Return the state as JSON values; times are seconds, counts are since the programs started."""
    uplink = status.uplink
    return {
        "version": __version__,
        "ready": status.ready,
        "silent_seconds": round(time.monotonic() - status.heartbeat, 1),
        "datapath": {"mode": status.datapath, "reason": status.datapath_reason},
        "fast_path": _fast_path(status),
        "backend": status.backend,
        "network": _text(status.network),
        "subnet": _text(status.subnet),
        "mtu": status.mtu,
        "uplink": uplink
        and {
            "interface": uplink.name,
            "address": str(uplink.address),
            "public_ip": str(uplink.public_ip),
            "mtu": uplink.mtu,
            "reason": uplink.reason,
        },
        "lease": {"expires_at": status.lease_expires_at, "trouble": status.lease_trouble},
        "store": {"connected": status.store_connected, "trouble": status.store_trouble},
        "peers": {
            "desired": status.peers_desired,
            "programmed": status.peers_programmed,
            "refused": {str(subnet): why for subnet, why in status.refused.items()},
        },
        "skipped_records": status.skipped_records,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _fast_path(status: Status) -> dict[str, Any] | None:
    if status.verdicts is None:
        return None
    counts: dict[str, dict[str, int]] = {}
    for (program, verdict), count in status.verdicts().items():
        if count:
            counts.setdefault(program, {})[verdict] = count
    return {"verdicts": counts, "troubles": status.fast_path_troubles}


class StatusSocket:
    """Serve the state. A context manager; entering raises InvalidInputError if it cannot listen."""

    def __init__(self, status: Status, state_dir: Path) -> None:
        self._status = status
        self._path = state_dir / SOCKET_FILE
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)  # of a daemon that crashed; we hold the lock
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError as error:
            raise InvalidInputError(
                field="state-dir",
                value=str(self._path.parent),
                expected=f"a folder that can hold a Unix socket ({error})",
            ) from error
        Thread(target=self._serve, args=(self._socket,), name="status", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, listener: socket.socket) -> None:
        for connection in _connections(listener):
            with connection:
                connection.settimeout(_TIMEOUT)
                try:
                    connection.sendall(json.dumps(describe(self._status)).encode())
                except Exception:  # one reader's trouble must not end the answers to others
                    logger.exception("status not told")


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except OSError:  # closed by __exit__
            return


def ask(state_dir: Path) -> dict[str, Any]:
    """Return what the running daemon says of itself. Raises UnavailableError where none answers."""
    path = state_dir / SOCKET_FILE
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            parts = list(iter(lambda: connection.recv(1 << 16), b""))
        answer: dict[str, Any] = json.loads(b"".join(parts))
    except FileNotFoundError:
        raise UnavailableError(f"no kerseyd runs here with --state-dir={state_dir}") from None
    except PermissionError:
        raise UnavailableError(f"{path} is for root only (sudo kersey status)") from None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"kerseyd does not answer at {path}: {error}") from None
    return answer
