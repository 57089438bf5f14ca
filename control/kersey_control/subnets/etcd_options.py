"""How to reach an etcd cluster: endpoints, credentials, key prefix, checked. Pure; no gRPC here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, urlsplit

from kersey_control.errors import InvalidInputError
from kersey_control.options import EtcdFlags

DEFAULT_ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
DEFAULT_PREFIX = "/coreos.com/network"
DEFAULT_PORT = 2379
_FIELD = "etcd-endpoints"
_ENDPOINT = "http://HOST:PORT, https://HOST:PORT or HOST:PORT"


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """The store's settings, as flannel's `--etcd-*` flags give them.

    TLS is decided by the endpoints: `https` uses it, with `cafile` or else the system's roots, and
    with a client certificate where one is given. An endpoint without a scheme uses TLS if any of
    the three files is given. `username` empty means no login.
    """

    endpoints: tuple[str, ...] = DEFAULT_ENDPOINTS
    prefix: str = DEFAULT_PREFIX
    keyfile: Path | None = None
    certfile: Path | None = None
    cafile: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def from_flags(cls, flags: EtcdFlags) -> Self:
        """Return the settings that these flags ask for."""
        return cls(
            endpoints=flags.etcd_endpoints,
            prefix=flags.etcd_prefix,
            keyfile=flags.etcd_keyfile,
            certfile=flags.etcd_certfile,
            cafile=flags.etcd_cafile,
            username=flags.etcd_username,
            password=flags.etcd_password,
        )

    @property
    def tls_files(self) -> tuple[Path, ...]:
        """Return the TLS files that were given."""
        return tuple(path for path in (self.cafile, self.certfile, self.keyfile) if path)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member's client address; an IPv6 host has no brackets here."""

    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.target_host}:{self.port}"

    @property
    def target_host(self) -> str:
        """Return the host as it stands before a colon and a port."""
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_endpoints(options: EtcdOptions) -> tuple[Endpoint, ...]:
    """Return the endpoints in the given order, each once.

    Raises InvalidInputError for an empty list, a malformed endpoint, http and https side by side,
    or half a client certificate.
    """
    if (options.certfile is None) != (options.keyfile is None):
        given = options.certfile or options.keyfile
        raise InvalidInputError(
            field="etcd-certfile, etcd-keyfile", value=str(given), expected="both or neither"
        )
    texts = [text.strip() for text in options.endpoints if text.strip()]
    found = (_endpoint(text, secure=bool(options.tls_files)) for text in texts)
    endpoints = tuple(dict.fromkeys(found))
    if not endpoints:
        raise InvalidInputError(field=_FIELD, value=options.endpoints, expected="at least one")
    if len({endpoint.secure for endpoint in endpoints}) > 1:
        raise InvalidInputError(
            field=_FIELD, value=",".join(texts), expected="either all http or all https"
        )
    return endpoints


def key_prefix(options: EtcdOptions) -> str:
    """Return the prefix of all keys without a slash at its end and with single slashes in it."""
    return re.sub("/+", "/", options.prefix).rstrip("/")


def system_roots(candidates: Iterable[str | None]) -> Path:
    """Return the first existing file of trusted roots among `candidates`."""
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise InvalidInputError(
        field="etcd-cafile", value="", expected="a CA file, as this system has no trusted roots"
    )


def _endpoint(text: str, *, secure: bool) -> Endpoint:
    scheme = "https" if secure else "http"
    try:
        url = urlsplit(text if "://" in text else f"{scheme}://{text}")
        port = url.port or DEFAULT_PORT
    except ValueError:
        raise InvalidInputError(field=_FIELD, value=text, expected=_ENDPOINT) from None
    if not _is_plain(url):
        raise InvalidInputError(field=_FIELD, value=text, expected=_ENDPOINT)
    return Endpoint(host=url.hostname or "", port=port, secure=url.scheme == "https")


def _is_plain(url: SplitResult) -> bool:
    has_more = url.username is not None or url.path.strip("/") or url.query or url.fragment
    return url.scheme in ("http", "https") and bool(url.hostname) and not has_more
