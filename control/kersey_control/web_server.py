"""An HTTP server on threads that clients can neither fill up nor keep for themselves.

Promises: so many connections at most, each for so long at most, a TLS handshake included, however
slowly its client drips; who comes last is served, at the cost of the one that was there longest.
Never asks for the name of an address, which can hang for seconds. What it serves is its users'.
"""

import logging
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock
from typing import Any

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
"""At a time; as many again may be on their way out, while an answer of theirs is made."""

LIFETIME = 15.0
"""Seconds from a connection's beginning to its end, whatever its client does."""


@dataclass(slots=True)
class _Connection:
    """A connection by a descriptor of our own: TLS takes the first one over."""

    handle: socket.socket
    since: float
    is_over: bool = False

    def end(self) -> None:
        """Have its thread see the end of it, wherever that waits for the client."""
        self.is_over = True
        with suppress(OSError):  # the client was faster
            self.handle.shutdown(socket.SHUT_RDWR)


class WebServer(ThreadingHTTPServer):
    """A thread for each connection. Making it raises OSError if the address cannot be had.

    An empty address is every one of this host's.
    """

    daemon_threads = True
    request_queue_size = 128  # of 5, a sixth that comes at once waits a second for its turn

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        target: Any
        self.address_family, _, _, _, target = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._open: dict[Any, _Connection] = {}  # the oldest first
        self._lock = Lock()
        super().__init__(target, handler)

    def server_bind(self) -> None:
        """Bind without the reverse name lookup of http.server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def verify_request(self, request: Any, client_address: object) -> bool:
        """Accept a connection; where there are too many, the oldest one is ended for it."""
        del client_address
        with self._lock:
            served = [connection for connection in self._open.values() if not connection.is_over]
            if len(served) >= MOST_CONNECTIONS:
                served[0].end()
            return len(self._open) < 2 * MOST_CONNECTIONS and self._keep(request)

    def service_actions(self) -> None:
        """End the connections that have had their time; called twice a second or more often."""
        oldest = time.monotonic() - LIFETIME
        with self._lock:
            for connection in self._open.values():
                if connection.since < oldest and not connection.is_over:
                    connection.end()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, refused or served."""
        with self._lock:
            connection = self._open.pop(request, None)
        super().shutdown_request(request)
        if connection is not None:
            connection.handle.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a defect of ours; what clients do wrong is theirs to see."""
        del request
        error = sys.exception()
        if isinstance(error, OSError):  # timeouts, resets, failed handshakes
            logger.debug("request not served", extra={"reason": str(error)})
        else:
            logger.error("request failed", exc_info=error, extra={"client": str(client_address)})

    def _keep(self, request: Any) -> bool:
        try:
            self._open[request] = _Connection(request.dup(), time.monotonic())
        except OSError:  # out of descriptors
            return False
        return True
