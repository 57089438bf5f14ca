"""etcd v3 behind plain values: connections, unary calls, errors and one raw watch stream.

It promises that no type and no exception of etcd3, gRPC or protobuf gets out, that every call ends
within its timeout, that a compare-and-swap whose answer was lost is not mistaken for a lost race,
and that an answer without what etcd always sends (protobuf reads no bytes at all as an empty list)
is an outage, not a fact. It never retries a refusal and never sleeps: when to come back is decided
by its users.

Each endpoint has a channel of its own instead of one channel over all addresses, so that every
member's certificate is checked against the name by which it was given, and names are resolved by
gRPC again whenever it reconnects. A call tries the endpoint that answered last, then the others.
"""

import logging
import os
import queue
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

from kersey_control.errors import (
    InvalidInputError,
    StoreAuthError,
    StoreConflictError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from kersey_control.subnets.etcd_options import (
    Endpoint,
    EtcdOptions,
    parse_endpoints,
    system_roots,
)

# What gRPC would print on stderr about connections also reaches us as an error; it reads this once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

from kersey_control.subnets.etcdrpc import rpc_pb2, rpc_pb2_grpc


def _load_etcd3() -> Any:
    """Import etcd3 over our stubs; its own do not import with protobuf 4 or later."""
    stubs = ModuleType("etcd3.etcdrpc")
    for source in (rpc_pb2, rpc_pb2_grpc):
        public = {name: value for name, value in vars(source).items() if not name.startswith("__")}
        vars(stubs).update(public)
    sys.modules["etcd3.etcdrpc"] = stubs
    import etcd3  # noqa: PLC0415  # only now can it be imported

    return etcd3


etcd3: Final = _load_etcd3()
logger = logging.getLogger(__name__)
_T = TypeVar("_T")

CALL_TIMEOUT = 5.0
PAGE_SIZE = 1000
LIST_ATTEMPTS = 5
POLL = 0.1
SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 6000),  # etcd closes connections that ping more often than 5 s
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # without it a stopped server went unnoticed for 20 s
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    ("grpc.enable_http_proxy", 0),  # http_proxy is meant for the web, not for the cluster's store
)
_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")
_AUTH_WORDS = (*_STALE_TOKEN, "authentication failed", "permission denied")


class HistoryLostError(StoreError):
    """Report that the wanted revision is gone (compacted, or another cluster). List again."""


class _StaleTokenError(StoreAuthError):
    """Report that the session's token is not, or no longer, accepted; a new login may help."""


@dataclass(frozen=True, slots=True)
class Record:
    """One key as etcd holds it; `lease_id` 0 means that it never expires."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far the history of one cluster is known."""

    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Every record of a span at one instant."""

    records: tuple[Record, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one record; of a deleted one only key and revision mean anything."""

    record: Record
    deleted: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A write that took place: its revision, and the etcd lease the record had before (or 0)."""

    revision: int
    previous_lease_id: int


@dataclass(frozen=True, slots=True)
class Span:
    """The keys to list or to watch: one key, or all that begin with `start`."""

    start: str
    is_prefix: bool

    @property
    def end(self) -> bytes:
        """Return the first key behind the span, empty for a single key."""
        raw = self.start.encode()
        return raw[:-1] + bytes([raw[-1] + 1]) if self.is_prefix else b""


class _Session:
    """One endpoint's channel and login. Thread-safe; the token is the only thing that changes."""

    def __init__(self, endpoint: Endpoint, options: EtcdOptions) -> None:
        self.endpoint = endpoint
        self._username = options.username
        self._password = options.password
        self._lock = threading.Lock()
        self._is_logged_in = not options.username
        self._tls_files = options.tls_files if endpoint.secure else ()
        self._read_at = _versions(self._tls_files)
        # The login is ours: etcd3 logs in while it is constructed, and once only.
        self.client = etcd3.Etcd3Client(
            host=endpoint.target_host,
            port=endpoint.port,
            timeout=CALL_TIMEOUT,
            grpc_options=CHANNEL_OPTIONS,
            **(_tls_arguments(options) if endpoint.secure else {}),
        )

    def login(self) -> None:
        """Get a token unless there is one."""
        with self._lock:
            if self._is_logged_in:
                return
            request = rpc_pb2.AuthenticateRequest(name=self._username, password=self._password)
            stub = etcd3.etcdrpc.AuthStub(self.client.channel)
            try:
                token = stub.Authenticate(request, timeout=CALL_TIMEOUT).token
            except grpc.RpcError as error:
                if "authentication is not enabled" not in _details(error):
                    raise
                logger.info("etcd has authentication switched off, going on without a login")
                token = ""
            self.client.metadata = (("token", token),) if token else None
            self._is_logged_in = True

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what identifies us on a call."""
        return self.client.metadata or ()

    def forget(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Drop a token that was refused, unless another thread has replaced it already."""
        with self._lock:
            if self._username and self.metadata == metadata:
                self._is_logged_in = False

    @property
    def is_outdated(self) -> bool:
        """Say whether a certificate or key was replaced since this channel read it."""
        return _versions(self._tls_files) != self._read_at

    def close(self) -> None:
        self.client.close()


class EtcdClient:
    """A connection to a cluster. A context manager; all methods may be called from any thread."""

    def __init__(self, options: EtcdOptions) -> None:
        self._endpoints = parse_endpoints(options)
        self._options = options
        self._sessions: dict[int, _Session] = {}
        self._preferred = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        for path in options.tls_files:
            _require_readable(path)
        if options.tls_files and not self._endpoints[0].secure:
            logger.warning("etcd TLS files are given but the endpoints are http, they are not used")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every call and watch in progress; twice does no harm."""
        self._closing.set()
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()

    @property
    def is_closed(self) -> bool:
        """Say whether close() was called."""
        return self._closing.is_set()

    def pause(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Return after `seconds`, or soon after `stop` is set or the client is closed."""
        deadline = time.monotonic() + seconds
        waited_for = stop or self._closing
        while not self.is_closed and (left := deadline - time.monotonic()) > 0:
            if waited_for.wait(min(left, POLL)):
                return

    def get(self, key: str) -> Record | None:
        """Return one record, None if it does not exist."""
        request = rpc_pb2.RangeRequest(key=key.encode())
        answer = self._call(lambda session: _range(session, request))
        return _record(answer.kvs[0]) if answer.kvs else None

    def list(self, span: Span) -> Listing:
        """Return all records of `span` as they were at one instant, read page by page."""
        for _ in range(LIST_ATTEMPTS):
            try:
                return self._list(span)
            except HistoryLostError:  # compacted between two pages
                continue
        raise StoreUnavailableError(f"etcd: {span.start} was compacted away while it was read")

    def create(self, key: str, value: bytes, *, lease_id: int) -> Written:
        """Write a record that must not exist yet. Raises StoreConflictError if it does."""
        compare = lambda tx: tx.version(key) == 0  # noqa: E731  # etcd3's comparison is an object
        return self._swap(compare, key=key, value=value, lease_id=lease_id)

    def replace(self, key: str, value: bytes, *, mod_revision: int, lease_id: int) -> Written:
        """Write a record that must be unchanged since `mod_revision`; else StoreConflictError."""
        compare = lambda tx: tx.mod(key) == mod_revision  # noqa: E731  # see create
        return self._swap(compare, key=key, value=value, lease_id=lease_id)

    def delete(self, key: str, *, mod_revision: int) -> None:
        """Delete a record that must be unchanged since `mod_revision`; else StoreConflictError."""

        def call(session: _Session) -> bool:
            tx = session.client.transactions
            return _transact(session, tx.mod(key) == mod_revision, tx.delete(key), key)[0]

        if not self._call(call):
            raise StoreConflictError(f"etcd: {key} changed since revision {mod_revision}")

    def grant(self, seconds: int) -> int:
        """Return the id of a new etcd lease."""
        return self._call(lambda session: _grant(session, seconds))

    def discard_lease(self, lease_id: int) -> None:
        """Revoke an etcd lease that holds no key, so that none is left behind. Never raises.

        A lease that holds a key is left alone: revoking it would delete the key.
        """
        try:
            if lease_id and not self._call(lambda session: _lease_info(session, lease_id)).keys:
                self._call(lambda session: session.client.revoke_lease(lease_id))
        except StoreConflictError:
            logger.debug("etcd lease is already gone", extra={"etcd_lease": f"{lease_id:x}"})
        except StoreError as error:
            logger.warning(
                "etcd lease not revoked, it ends by itself",
                extra={"etcd_lease": f"{lease_id:x}", "error": str(error)},
            )

    def remaining(self, lease_id: int) -> int:
        """Return the seconds that an etcd lease has left, negative if it is gone."""
        return int(self._call(lambda session: _lease_info(session, lease_id)).TTL)

    def watch(
        self, span: Span, known: Position, stop: threading.Event
    ) -> Iterator[tuple[Update, ...]]:
        """Yield all changes after `known`, first an empty tuple once etcd has accepted the watch.

        Ends when `stop` is set or the client is closed. Raises HistoryLostError when changes are
        missing for good and StoreError for every other end of the stream.
        """
        index = self._preferred
        with self._opened(index, span, known) as stream:
            deadline = time.monotonic() + CALL_TIMEOUT
            while not stop.is_set() and not self.is_closed:
                response = stream.next(POLL)
                if response is not None:
                    deadline = float("inf")
                    yield _updates(response, known)
                elif time.monotonic() > deadline:
                    self._prefer_next(index)
                    raise StoreUnavailableError(f"etcd {stream.session.endpoint}: watch timed out")

    def _opened(self, index: int, span: Span, known: Position) -> "_Stream":
        try:
            session = self._session(index)
            _guard(session, session.login)
        except StoreUnavailableError:
            self._prefer_next(index)
            raise
        create = rpc_pb2.WatchCreateRequest(
            key=span.start.encode(), range_end=span.end, start_revision=known.revision + 1
        )
        return _Stream(
            session,
            rpc_pb2.WatchRequest(create_request=create),
            on_loss=lambda: self._prefer_next(index),
        )

    def _list(self, span: Span) -> Listing:
        request = rpc_pb2.RangeRequest(key=span.start.encode(), range_end=span.end, limit=PAGE_SIZE)
        records: list[Record] = []
        while True:
            page = self._call(lambda session: _range(session, request))
            records.extend(map(_record, page.kvs))
            # Later pages are read at the first one's revision: together they are one instant.
            revision = request.revision = request.revision or page.header.revision
            if not page.more:
                return Listing(tuple(records), Position(revision, page.header.cluster_id))
            request.key = page.kvs[-1].key + b"\0"

    def _swap(
        self, compare: Callable[[Any], Any], *, key: str, value: bytes, lease_id: int
    ) -> Written:
        def call(session: _Session) -> tuple[bool, Any]:
            tx = session.client.transactions
            put = tx.put(key, value, lease=lease_id, prev_kv=True)
            return _transact(session, compare(tx), put, key)

        is_done, answer = self._call(call)
        if is_done:
            put = answer.response_put
            return Written(put.header.revision, put.prev_kv.lease)
        for present, about in answer:
            # An earlier try of this very write whose answer was lost. It is not a lost race.
            if present == value and about.lease_id == lease_id:
                return Written(about.mod_revision, 0)
        raise StoreConflictError(f"etcd: {key} is not as it was read, another writer was first")

    def _call(self, call: Callable[[_Session], _T]) -> _T:
        """Run `call` on the endpoint that answered last, then on the others until one answers."""
        first = self._preferred
        trouble: list[str] = []
        for offset in range(len(self._endpoints)):
            index = (first + offset) % len(self._endpoints)
            try:
                return _authenticated(self._session(index), call)
            except StoreUnavailableError as error:
                trouble.append(str(error))
                self._prefer_next(index)
        raise StoreUnavailableError("; ".join(trouble))

    def _session(self, index: int) -> _Session:
        with self._lock:
            if self.is_closed:
                raise StoreUnavailableError("etcd: the client is closed")
            if index not in self._sessions:
                self._sessions[index] = self._new_session(self._endpoints[index])
            return self._sessions[index]

    def _new_session(self, endpoint: Endpoint) -> _Session:
        try:
            if endpoint.secure:
                _require_usable(self._options)
            return _Session(endpoint, self._options)
        except OSError as error:
            raise StoreUnavailableError(f"etcd {endpoint}: TLS files: {error}") from None

    def _prefer_next(self, failed: int) -> None:
        """Turn to the next endpoint, unless another thread has turned away from `failed` before.

        Certificates that are good no more show as a failure too: replaced ones are read then.
        """
        with self._lock:
            if self._preferred == failed:
                self._preferred = (failed + 1) % len(self._endpoints)
            session = self._sessions.get(failed)
            if session is None or not session.is_outdated:
                return
            try:
                self._sessions[failed] = self._new_session(session.endpoint)
            except StoreUnavailableError as error:  # not wholly replaced yet: the former may do
                logger.debug("etcd TLS files not read again", extra={"error": str(error)})
                return
        logger.info("etcd TLS files were replaced", extra={"endpoint": str(session.endpoint)})
        session.close()


class _Stream:
    """One open watch. A context manager; a helper thread reads, so that a reader can give up."""

    def __init__(
        self, session: _Session, request: rpc_pb2.WatchRequest, *, on_loss: Callable[[], None]
    ) -> None:
        self.session = session
        self._metadata = session.metadata
        self._on_loss = on_loss
        self._answers: queue.SimpleQueue[rpc_pb2.WatchResponse | Exception] = queue.SimpleQueue()
        self._closed = threading.Event()
        try:
            self._call = etcd3.etcdrpc.WatchStub(session.client.channel).Watch(
                self._requests(request), metadata=(*self._metadata, ("hasleader", "true"))
            )
        except ValueError as error:  # the channel was closed
            raise StoreUnavailableError(f"etcd {session.endpoint}: {error}") from None
        self._reader = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._call.cancel()
        self._reader.join(CALL_TIMEOUT)

    def next(self, timeout: float) -> rpc_pb2.WatchResponse | None:
        """Return the next response, None after `timeout` seconds without one."""
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            return None
        try:
            if isinstance(answer, Exception):
                _raise_store_error(answer, self.session.endpoint)
            _check_accepted(answer, self.session.endpoint)
        except StoreAuthError:  # some versions of etcd call a lost token a lack of permission here
            self.session.forget(self._metadata)
            raise
        except StoreUnavailableError:
            self._on_loss()
            raise
        return answer

    def _requests(self, request: rpc_pb2.WatchRequest) -> Iterator[rpc_pb2.WatchRequest]:
        yield request
        self._closed.wait()  # a half-closed stream would be ended by etcd's own proxy

    def _read(self) -> None:
        try:
            for response in self._call:
                self._answers.put(response)
        except grpc.RpcError as error:
            self._answers.put(error)
        else:
            self._answers.put(ConnectionError("the watch stream ended"))


def _range(session: _Session, request: rpc_pb2.RangeRequest) -> Any:
    # etcd3's own get_prefix ignores limit and revision, so it cannot page.
    answer = session.client.kvstub.Range(request, CALL_TIMEOUT, metadata=session.metadata)
    is_whole = answer.header.revision and (answer.kvs or not answer.more)
    return _whole(session, "keys", answer, is_whole=is_whole)


def _transact(session: _Session, compare: Any, operation: Any, key: str) -> tuple[bool, Any]:
    """Do `operation` if `compare` holds; return whether it does, and the answer or the record."""
    is_done, answers = session.client.transaction(
        compare=[compare], success=[operation], failure=[session.client.transactions.get(key)]
    )
    return bool(is_done), _whole(session, "a transaction", answers, is_whole=answers)[0]


def _grant(session: _Session, seconds: int) -> int:
    # Id 0 would make of the record a reservation, which never ends.
    lease_id = session.client.lease(seconds).id
    return int(_whole(session, "a new lease", lease_id, is_whole=lease_id))


def _lease_info(session: _Session, lease_id: int) -> Any:
    answer = session.client.get_lease_info(lease_id)
    return _whole(session, "a lease", answer, is_whole=lease_id == answer.ID)


def _whole(session: _Session, what: str, answer: _T, *, is_whole: object) -> _T:
    """Return an answer that has what etcd always sends. Raises StoreUnavailableError."""
    if not is_whole:
        raise StoreUnavailableError(f"etcd {session.endpoint}: the answer about {what} is empty")
    return answer


def _authenticated(session: _Session, call: Callable[[_Session], _T]) -> _T:
    """Run `call` logged in; once more with a new login if the token has become invalid."""
    _guard(session, session.login)
    used = session.metadata
    try:
        return _guard(session, lambda: call(session))
    except _StaleTokenError:
        session.forget(used)
        _guard(session, session.login)
        return _guard(session, lambda: call(session))


def _guard(session: _Session, call: Callable[[], _T]) -> _T:
    """Run `call` and let only our own errors out."""
    try:
        return call()
    except (grpc.RpcError, etcd3.Etcd3Exception, ValueError) as error:
        _raise_store_error(error, session.endpoint)


def _raise_store_error(error: Exception, endpoint: Endpoint) -> NoReturn:
    """Raise what a library error means to us.

    etcd3 replaces four of gRPC's codes by empty exceptions; the original is their context. A
    ValueError is how gRPC says that the channel was closed under a call.
    """
    cause = error.__context__ if isinstance(error, etcd3.Etcd3Exception) else error
    if not isinstance(cause, grpc.RpcError):
        raise StoreUnavailableError(f"etcd {endpoint}: {error}") from None
    code, details = cause.code(), _details(cause)
    message = f"etcd {endpoint}: {details or code.name}"
    raise _error_type(code, details.lower())(message) from None


def _error_type(code: grpc.StatusCode, details: str) -> type[StoreError]:
    if any(words in details for words in _STALE_TOKEN):
        return _StaleTokenError
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return _StaleTokenError
    if code is grpc.StatusCode.PERMISSION_DENIED or any(words in details for words in _AUTH_WORDS):
        return StoreAuthError
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return HistoryLostError
    if code is grpc.StatusCode.NOT_FOUND:  # an etcd lease that has ended
        return StoreConflictError
    is_server_full = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in details
    return StoreUnavailableError if code in _UNAVAILABLE or is_server_full else StoreRefusedError


def _check_accepted(response: rpc_pb2.WatchResponse, endpoint: Endpoint) -> None:
    """Raise what a canceled watch means; etcd reports refusals in the stream, not as its end."""
    if response.compact_revision:
        raise HistoryLostError(f"etcd {endpoint}: compacted up to {response.compact_revision}")
    if response.canceled:
        reason = response.cancel_reason or "no reason given"
        kind = _error_type(grpc.StatusCode.FAILED_PRECONDITION, reason.lower())
        raise kind(f"etcd {endpoint}: watch canceled: {reason}")


def _updates(response: rpc_pb2.WatchResponse, known: Position) -> tuple[Update, ...]:
    header = response.header
    if header.cluster_id != known.cluster_id or header.revision < known.revision:
        # Watching a cluster that was restored or made anew from a revision that it has not
        # reached yet would be silent until it gets there.
        raise HistoryLostError("etcd: another cluster, or one put back to an earlier state")
    is_deletion = rpc_pb2.Event.EventType.DELETE
    return tuple(
        Update(_record(event.kv), deleted=event.type == is_deletion) for event in response.events
    )


def _record(kv: rpc_pb2.KeyValue) -> Record:
    return Record(
        key=kv.key.decode(errors="backslashreplace"),
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease_id=kv.lease,
    )


def _details(error: grpc.RpcError) -> str:
    return str(error.details() or "")


def _tls_arguments(options: EtcdOptions) -> dict[str, str | None]:
    roots = options.cafile or system_roots((ssl.get_default_verify_paths().cafile, *SYSTEM_ROOTS))
    return {
        "ca_cert": str(roots),
        "cert_cert": str(options.certfile) if options.certfile else None,
        "cert_key": str(options.keyfile) if options.keyfile else None,
    }


def _require_usable(options: EtcdOptions) -> None:
    """Raise OSError for files that gRPC would end the process for, or could not connect with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.cafile is not None:
        context.load_verify_locations(options.cafile)
    if options.certfile is not None:
        context.load_cert_chain(options.certfile, options.keyfile, password=lambda: "")


def _versions(paths: Iterable[Path]) -> tuple[tuple[int, int] | None, ...]:
    """Return what changes whenever one of the files is written or replaced."""
    return tuple(map(_version, paths))


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _require_readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            field="etcd TLS file", value=str(path), expected=f"a readable file ({error.strerror})"
        ) from None
