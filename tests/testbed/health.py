"""HTTP questions asked on a namespace's own loopback."""

from http.client import HTTPConnection, HTTPException

from testbed.namespace import Namespace

_TIMEOUT = 2.0


def http_get(namespace: Namespace, *, port: int, path: str) -> tuple[int, str] | None:
    """Return status and body of `path` on 127.0.0.1:`port`, None where nothing answers."""

    def ask() -> tuple[int, str] | None:
        connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    return namespace.call(ask)
