"""Where the Kubernetes API server is and what we show it: in-cluster account, kubeconfig or URL.

Files that others rotate (the service account's token, certificates) are read whenever they are
needed and never kept. A kubeconfig that asks for something we cannot do is refused; nothing in it
that decides about identity is passed over in silence.
"""

import base64
import binascii
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec

from kersey_control.errors import InvalidInputError, StoreAuthError
from kersey_control.subnets.kube_options import KubeOptions

Pem: TypeAlias = Path | bytes
"""Certificates or a key: a file, or the text itself."""


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and our credentials there.

    `path` is what stands in front of `/api`, without a slash at its end. `tls_name` is the name
    that the server's certificate must bear, where it is not `host`.
    """

    host: str
    port: int
    is_secure: bool
    path: str = ""
    tls_name: str = ""
    ca: Pem | None = None
    verifies_server: bool = True
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_secure else 'http'}://{host}:{self.port}{self.path}"

    def authorization(self) -> str:
        """Return the value of the Authorization header as of now, empty if there is none.

        Raises StoreAuthError if the token cannot be read.
        """
        token = self.token if self.token_file is None else _read_token(self.token_file)
        if token:
            return f"Bearer {token}"
        if self.username:
            pair = f"{self.username}:{self.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        return ""

    def tls_context(self) -> ssl.SSLContext:
        """Return a context with the certificates as of now. Raises StoreAuthError."""
        try:
            context = _trusting(self.ca)
            if self.certificate is not None:
                with _as_file(self.certificate) as chain, _as_file(self.key) as key:
                    context.load_cert_chain(chain or "", key, password=_no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise StoreAuthError(f"kubernetes {self}: TLS files: {error}") from None
        if not self.verifies_server:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def find_access(options: KubeOptions) -> Access:
    """Return the API server that `options` lead to, in client-go's order.

    Raises InvalidInputError naming the flag or the kubeconfig's field.
    """
    if options.kubeconfig is not None:
        return _from_kubeconfig(options.kubeconfig, server=options.api_url)
    if options.api_url:
        return _at(options.api_url, field="--kube-api-url")
    if not options.service:
        raise InvalidInputError(
            field="--kube-api-url",
            value="",
            expected="the API server's URL, or --kubeconfig-file, outside of a cluster",
        )
    return replace(
        _at(f"https://{options.service}", field="KUBERNETES_SERVICE_HOST, _PORT"),
        ca=options.service_account / "ca.crt",
        token_file=options.service_account / "token",
    )


def _at(url: str, *, field: str) -> Access:
    """Return anonymous access to `url`."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")  # as client-go
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    has_more = parts.query or parts.fragment or parts.username is not None
    has_more = has_more or not url.isascii() or not url.isprintable() or " " in url
    if parts.scheme not in {"http", "https"} or not parts.hostname or has_more or port == 0:
        raise InvalidInputError(field=field, value=url, expected="http[s]://HOST[:PORT][/PATH]")
    is_secure = parts.scheme == "https"
    return Access(
        host=parts.hostname,
        port=port or (443 if is_secure else 80),
        is_secure=is_secure,
        path=parts.path.rstrip("/"),
    )


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StoreAuthError(f"kubernetes token {path}: {error}") from None
    if not _is_token(token):
        raise StoreAuthError(f"kubernetes token {path}: got no token, expected one line of text")
    return token


def _is_token(text: str) -> bool:
    """Return whether `text` can stand in a header: nothing in it may end the line."""
    return bool(text) and text.isascii() and text.isprintable()


def _trusting(ca: Pem | None) -> ssl.SSLContext:
    if isinstance(ca, bytes):
        return ssl.create_default_context(cadata=ca.decode("ascii"))
    return ssl.create_default_context(cafile=ca)


def _no_password() -> str:
    """Refuse an encrypted key; without this OpenSSL would ask on the terminal and wait."""
    raise ValueError("the client's key is encrypted")


@contextmanager
def _as_file(pem: Pem | None) -> Iterator[str | None]:
    """Give the name of a file with `pem` in it: OpenSSL reads keys from files only.

    Text goes to anonymous memory, so that no key ever lies on a disk.
    """
    if not isinstance(pem, bytes):
        yield None if pem is None else str(pem)
        return
    descriptor = os.memfd_create("kersey-pem")
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


# A kubeconfig file, as far as we understand it


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(msgspec.Struct, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    username: str = ""
    password: str = ""
    impersonate: str = msgspec.field(name="as", default="")
    auth_provider: object = None
    exec_plugin: object = msgspec.field(name="exec", default=None)


class _Context(msgspec.Struct):
    cluster: str
    user: str = ""


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct):
    name: str
    user: _User


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _Kubeconfig(msgspec.Struct, rename="kebab"):
    current_context: str = ""
    clusters: list[_NamedCluster] | None = None
    contexts: list[_NamedContext] | None = None
    users: list[_NamedUser] | None = None


class _Named(Protocol):
    name: str


_N = TypeVar("_N", bound=_Named)


def _from_kubeconfig(path: Path, *, server: str) -> Access:
    """Return the access of the current context; `server`, if not empty, replaces its address."""
    config = _load(path)
    context = _named(config.contexts, config.current_context, f"{path}: current-context").context
    cluster = _named(config.clusters, context.cluster, f"{path}: cluster").cluster
    user = _User()
    if context.user:
        user = _named(config.users, context.user, f"{path}: user").user
    _refuse_unsupported(path, cluster, user)
    place = _at(server or cluster.server, field=f"{path}: server")
    return _authenticated(place, _Source(path), cluster, user)


def _load(path: Path) -> _Kubeconfig:
    # Only here, so that a daemon inside a cluster never pays for a YAML parser.
    import msgspec.yaml  # noqa: PLC0415

    try:
        return msgspec.yaml.decode(path.read_bytes(), type=_Kubeconfig)
    except OSError as error:
        expected = f"a readable file ({error.strerror})"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        expected = f"a kubeconfig ({error})"
    raise InvalidInputError(field="--kubeconfig-file", value=str(path), expected=expected)


def _named(entries: Sequence[_N] | None, name: str, field: str) -> _N:
    for entry in entries or ():
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries or ()) or "none is there"
    raise InvalidInputError(field=field, value=name, expected=f"an entry of the file ({known})")


def _refuse_unsupported(path: Path, cluster: _Cluster, user: _User) -> None:
    present = {
        "exec": user.exec_plugin,
        "auth-provider": user.auth_provider,
        "as": user.impersonate,
        "proxy-url": cluster.proxy_url,
    }
    for name, value in present.items():
        if value:
            raise InvalidInputError(
                field=f"{path}: {name}",
                value="an entry",
                expected="none: only tokens, client certificates and passwords are supported",
            )


@dataclass(frozen=True, slots=True)
class _Source:
    """The file that entries came from: names in it are relative to its folder."""

    path: Path

    def file(self, name: str) -> Path | None:
        return self.path.parent / name if name else None

    def pem(self, name: str, data: str, field: str) -> Pem | None:
        """Return what an entry means that can be given as text (which wins) or by a file name."""
        if not data:
            return self.file(name)
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInputError(
                field=f"{self.path}: {field}", value="a text", expected="base64"
            ) from None


def _authenticated(place: Access, source: _Source, cluster: _Cluster, user: _User) -> Access:
    certificate = source.pem(
        user.client_certificate, user.client_certificate_data, "client-certificate-data"
    )
    key = source.pem(user.client_key, user.client_key_data, "client-key-data")
    if (certificate is None) != (key is None):
        raise InvalidInputError(
            field=f"{source.path}: client-certificate, client-key",
            value="one of them",
            expected="both or neither",
        )
    if user.token and not _is_token(user.token):
        raise InvalidInputError(
            field=f"{source.path}: token", value="a text", expected="one line of ASCII"
        )
    return replace(
        place,
        tls_name=cluster.tls_server_name,
        verifies_server=not cluster.insecure_skip_tls_verify,
        ca=source.pem(
            cluster.certificate_authority,
            cluster.certificate_authority_data,
            "certificate-authority-data",
        ),
        certificate=certificate,
        key=key,
        token=user.token,
        token_file=source.file(user.token_file),
        username=user.username,
        password=user.password,
    )
