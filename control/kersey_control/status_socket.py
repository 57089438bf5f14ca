"""The daemon's side and the operator's side of the Unix socket in the state directory.

One request line, one answer, both JSON (`told` has the types); for root only. `status` and `peers`
are answered from `Status` by a thread of the socket's own, so that they are even while the control
loop hangs, and say so. A request that changes something is handed to whoever may do it.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self, TypeVar

import msgspec
from kersey_loader.errors import LoaderError

from kersey_control import __version__
from kersey_control.errors import InvalidInputError, KerseyError, UnavailableError
from kersey_control.reach import Answering, Reach
from kersey_control.status import Status
from kersey_control.told import (
    Answer,
    Question,
    ToldDatapath,
    ToldFastPath,
    ToldLease,
    ToldOptions,
    ToldPeer,
    ToldPeers,
    ToldReach,
    ToldSilent,
    ToldStatus,
    ToldStore,
    ToldUplink,
    ToldXdp,
    Verb,
    encode,
)

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

SOCKET_FILE = "kerseyd.sock"
"""The name of the socket in the state directory."""

ACCEPT_PAUSE = 1.0
"""Seconds until a connection that could not be taken is tried again."""

_TIMEOUT = 2.0
_PATIENCE = 15.0
"""Seconds that the operator's side waits: a request may wait its turn in the control loop."""

_LINE = 4096


def describe(status: Status, options: ToldOptions) -> ToldStatus:
    """Return the daemon's state as of now."""
    return ToldStatus(
        version=__version__,
        pid=os.getpid(),
        ready=status.ready,
        silent_seconds=round(status.silence(time.monotonic()), 1),
        datapath=ToldDatapath(status.datapath, status.datapath_reason),
        fast_path=_fast_path(status),
        backend=status.backend,
        device=status.device,
        tunnel=status.tunnel,
        network=_text(status.network),
        subnet=_text(status.subnet),
        mtu=status.mtu,
        uplink=_uplink(status),
        lease=ToldLease(status.lease_ends(), status.lease_trouble),
        store=ToldStore(status.store_connected, status.store_trouble),
        peers=ToldPeers(
            desired=status.peers_desired,
            programmed=status.peers_programmed,
            refused={str(subnet): why for subnet, why in status.refused.items()},
            silent=tuple(_silent(status)),
        ),
        probes_trouble=status.probes_trouble,
        skipped_records=status.skipped_records,
        options=options,
    )


def describe_peers(status: Status) -> list[ToldPeer]:
    """Return every peer by subnet; of a lease that cannot be one, the subnet and the reason."""
    now = time.monotonic()
    reaches = status.reach() if status.reach is not None else {}
    known = {
        each.peer.subnet: ToldPeer(
            subnet=str(each.peer.subnet),
            node=str(each.peer.node),
            via=each.peer.via,
            condition=each.condition,
            reason=each.reason,
            mac=each.peer.mac,
            reach=_reach(reaches.get(each.peer.subnet), now),
        )
        for each in status.peers
    }
    for subnet, why in status.refused.items():
        if subnet not in known:
            known[subnet] = ToldPeer(str(subnet), node="", via="", condition="refused", reason=why)
    return [known[subnet] for subnet in sorted(known)]


def _silent(status: Status) -> Iterator[ToldSilent]:
    reaches = status.reach() if status.reach is not None else {}
    for each in status.peers:
        peer = each.peer
        reach = reaches.get(peer.subnet)
        if reach is not None and reach.answering is Answering.SILENT:
            yield ToldSilent(str(peer.subnet), str(peer.node), peer.via, reach.one_way)


def _reach(reach: Reach | None, now: float) -> ToldReach | None:
    if reach is None:
        return None
    return ToldReach(
        answering=reach.answering,
        round_trip_seconds=reach.round_trip,
        loss=reach.loss,
        loss_out=reach.loss_out,
        loss_in=reach.loss_in,
        one_way=reach.one_way,
        answered_seconds_ago=None if reach.answered_at is None else now - reach.answered_at,
        asked=_text(reach.asked) or "",
        means=reach.means,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _uplink(status: Status) -> ToldUplink | None:
    uplink = status.uplink
    if uplink is None:
        return None
    return ToldUplink(
        interface=uplink.name,
        address=str(uplink.address),
        public_ip=str(uplink.public_ip),
        mtu=uplink.mtu,
        reason=uplink.reason,
    )


def _fast_path(status: Status) -> ToldFastPath | None:
    if status.verdicts is None:
        return None
    xdp = ToldXdp(status.xdp_mode, status.xdp_reason) if status.xdp_mode else None
    try:
        verdicts = status.verdicts()
    except (LoaderError, OSError) as error:
        return ToldFastPath({}, {**status.fast_path_troubles, "counters": str(error)}, xdp)
    counts: dict[str, dict[str, int]] = {}
    for (program, verdict), count in verdicts.items():
        if count:
            counts.setdefault(program, {})[verdict] = count
    return ToldFastPath(counts, status.fast_path_troubles, xdp)


class StatusSocket:
    """Serve the state. A context manager; entering raises InvalidInputError if it cannot listen.

    `flush` carries out that verb and raises KerseyError where it cannot.
    """

    def __init__(
        self, status: Status, state_dir: Path, options: ToldOptions, flush: Callable[[], None]
    ) -> None:
        self._path = state_dir / SOCKET_FILE
        self._socket: socket.socket | None = None
        self._closed = Event()
        self._verbs: Mapping[str, Callable[[], object]] = {
            Verb.STATUS: lambda: describe(status, options),
            Verb.PEERS: lambda: describe_peers(status),
            Verb.FLUSH: flush,
        }

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
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self, listener: socket.socket) -> None:
        for connection in self._connections(listener):
            with connection:
                connection.settimeout(_TIMEOUT)
                try:
                    connection.sendall(encode(self._answer(_first_line(connection))))
                except OSError as error:
                    logger.debug("request not answered", extra={"reason": str(error)})
                except Exception:  # one reader's trouble must not end the answers to others
                    logger.exception("request not answered")

    def _connections(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Yield who connects, until we are closed; to lack descriptors or memory is no end."""
        is_told = False
        while not self._closed.is_set():
            try:
                connection = listener.accept()[0]
            except OSError as error:
                if not is_told and not self._closed.is_set():
                    logger.warning("nobody can ask for now", extra={"reason": str(error)})
                is_told = True
                self._closed.wait(ACCEPT_PAUSE)
            else:
                is_told = False
                yield connection

    def _answer(self, line: bytes) -> Answer:
        try:
            verb = msgspec.json.decode(line, type=Question).verb
        except msgspec.MsgspecError as error:
            return Answer(error=f"request: got {line[:80]!r}, expected a JSON object ({error})")
        action = self._verbs.get(verb)
        if action is None:
            known = ", ".join(self._verbs)
            return Answer(error=f"verb: got {verb!r}, expected one of {known}")
        try:
            return Answer(result=msgspec.Raw(encode(action())))
        except KerseyError as error:
            return Answer(error=str(error))


def _first_line(connection: socket.socket) -> bytes:
    """Return what was sent up to the first newline or the end, at most some thousand bytes."""
    received = b""
    while b"\n" not in received and len(received) < _LINE:
        part = connection.recv(_LINE)
        if not part:
            break
        received += part
    return received.partition(b"\n")[0]


def ask_status(state_dir: Path) -> ToldStatus:
    """Return what the running daemon says of itself. Raises UnavailableError where none answers."""
    return ask(state_dir, Verb.STATUS, ToldStatus)


def ask_peers(state_dir: Path) -> list[ToldPeer]:
    """Return the running daemon's peers by subnet. Raises UnavailableError where none answers."""
    return ask(state_dir, Verb.PEERS, list[ToldPeer])


def ask_flush(state_dir: Path) -> None:
    """Have the running daemon void every admitted flow.

    Raises UnavailableError where none answers, or with the daemon's reason.
    """
    ask(state_dir, Verb.FLUSH, type(None))


def ask(state_dir: Path, verb: Verb, kind: type[_T]) -> _T:
    """Return the running daemon's answer to one request; errors as the functions above."""
    path = state_dir / SOCKET_FILE
    try:
        answer = msgspec.json.decode(_exchange(path, encode(Question(verb))), type=Answer)
        if answer.error:
            raise UnavailableError(f"kerseyd: {answer.error}")
        return msgspec.json.decode(answer.result, type=kind)
    except (FileNotFoundError, ConnectionRefusedError):  # refused: a socket that a crash left
        raise NoDaemonError(f"no kerseyd runs here with --state-dir={state_dir}") from None
    except PermissionError:
        raise UnavailableError(f"{path} is for root only (use sudo)") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise UnavailableError(f"kerseyd does not answer at {path}: {error}") from None


class NoDaemonError(UnavailableError):
    """Report that no daemon runs here; whatever needs none can still be done."""


def _exchange(path: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(path))
        connection.sendall(line + b"\n")
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))
