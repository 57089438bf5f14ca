"""The server's TLS, which follows its files: certificates are renewed while the daemon runs.

Files that cannot be read, or do not belong together, as in the midst of a renewal, leave the last
good ones in use.
"""

import logging
import ssl
from pathlib import Path
from typing import TypeAlias

from kersey_control.errors import InvalidInputError

logger = logging.getLogger(__name__)

_Versions: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """A certificate and its key and, if clients must show one, who may sign theirs.

    Making it raises InvalidInputError where the files cannot be used. One thread at a time.
    """

    def __init__(self, *, certfile: Path, keyfile: Path, cafile: Path | None) -> None:
        self._certfile, self._keyfile, self._cafile = certfile, keyfile, cafile
        self._versions = self._read_versions()
        try:
            self._context = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise InvalidInputError(
                field="metrics-certfile, metrics-keyfile and metrics-cafile",
                value=", ".join(map(str, self._files)),
                expected=f"PEM files that belong together ({error})",
            ) from error

    def context(self) -> ssl.SSLContext:
        """Return what to serve with now."""
        versions = self._read_versions()
        if versions != self._versions:
            self._versions = versions
            try:
                self._context = self._load()
            except OSError as error:
                logger.warning("new certificate not usable yet", extra={"reason": str(error)})
            else:
                logger.info("new certificate in use", extra={"path": str(self._certfile)})
        return self._context

    @property
    def _files(self) -> tuple[Path, ...]:
        return (self._certfile, self._keyfile, *([self._cafile] if self._cafile else []))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._certfile, self._keyfile)
        if self._cafile is not None:
            context.load_verify_locations(self._cafile)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read_versions(self) -> _Versions:
        return tuple(_version(path) for path in self._files)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
