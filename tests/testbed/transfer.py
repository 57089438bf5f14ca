"""A stream of random bytes from one namespace to another, and whether it arrived as it was sent."""

import hashlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

from testbed.namespace import Namespace

_TIMEOUT = 20.0
_PART = 1 << 16


def transfer(
    source: Namespace,
    destination: Namespace,
    address: IPv4Address,
    *,
    size: int,
    port: int = 5001,
) -> bool:
    """Send `size` random bytes over TCP; return whether what arrived has the same SHA-256.

    Raises OSError where there is no connection, or none for 20 seconds.
    """
    data = os.urandom(size)
    with destination.call(lambda: _listen(port)) as server:
        # The kernel answers for the server until it accepts.
        client = source.call(lambda: socket.create_connection((str(address), port), _TIMEOUT))
        with client, ThreadPoolExecutor(1) as pool:
            arriving = pool.submit(_digest_of_one, server)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return arriving.result() == hashlib.sha256(data).digest()


def _listen(port: int) -> socket.socket:
    server = socket.create_server(("", port))
    server.settimeout(_TIMEOUT)
    return server


def _digest_of_one(server: socket.socket) -> bytes:
    """Return the SHA-256 of all that the next connection brings."""
    found = hashlib.sha256()
    connection, _peer = server.accept()
    with connection:
        connection.settimeout(_TIMEOUT)
        while part := connection.recv(_PART):
            found.update(part)
    return found.digest()
