"""A Kubernetes API server as far as nodes and events go, by HTTP and TLS, and all it does wrong.

It keeps nodes, revisions and the history of changes as etcd behind an API server does: lists are
consistent over their pages, a watch starts behind any revision that was not compacted away, patches
are strategic merges. It shares no code with what it tests. All methods may be called from any
thread; what a test reads (`requests`, `nodes`) is a copy or only grows.
"""

import base64
import json
import socket
import socketserver
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
PATCH_TYPE = "application/strategic-merge-patch+json"
OBJECT_TYPE = "application/json"
PREFIX = "flannel.alpha.coreos.com/"
TOKEN_TYPE = "Bearer"  # noqa: S105  # the scheme, not a token
POLL = 0.02


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    verb: str
    path: str
    query: dict[str, str]
    body: bytes
    content_type: str
    authorization: str


@dataclass(frozen=True)
class Fault:
    """An answer instead of the right one; status 0 hangs up without a word.

    `then` is called before the answer goes out.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    then: Callable[[], object] = lambda: None


class RefusalError(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ApiServer:
    """The cluster's nodes and a server that shows them; may be stopped and started again.

    It listens on `host` in the network namespace of the thread that starts it.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._host = host
        self._changed = threading.Condition()
        self._nodes: dict[str, Json] = {}
        self._revision = 100
        self._compacted = 0
        self._history: list[tuple[int, bytes]] = []
        self._lists: dict[int, list[Json]] = {}
        self._generation = 0
        self._bookmarks = 0
        self._created = 0
        self._server: _Server | None = None
        self._port = 0
        self._open = threading.Event()
        self._open.set()
        self._speaks = threading.Event()
        self._speaks.set()
        self.pods: dict[tuple[str, str], str] = {}
        self._events: dict[str, Json] = {}
        self.requests: list[Seen] = []
        self.streams = 0
        """Watches that are open now."""
        self.bookmarked = 0
        self.tokens: set[str] | None = None
        self.when_unauthorized: Callable[[], object] = lambda: None
        self.forbidden: set[tuple[str, str]] = set()
        self.faults: deque[tuple[str, Fault]] = deque()
        """Verb and what becomes of its next request."""
        self.page_limit = 1 << 30
        self.gone_as_event = False
        self.base = "/"
        """What stands in front of every path, as behind a proxy for many clusters."""
        self.hangs_up = False
        """Whether every answer is the last one on its connection."""
        self.piece = 1 << 20
        """How many bytes of a stream go into one chunk."""
        self.ballast: Json = {}
        """Put into the status of every node that is made."""

    # The process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        self._server = _Server(self, (self._host, self._port), self._tls)
        self._port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        """End at once, all connections too; twice does no harm."""
        server, self._server = self._server, None
        if server is not None:
            self._open.set()
            self._speaks.set()
            server.shutdown()
            server.server_close()
            self.cut()

    def cut(self) -> None:
        """Break every open stream, as a network would: without the last chunk."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept connections and requests but answer none; say nothing in streams."""
        self._open.clear()
        try:
            with self.muted():
                yield
        finally:
            self._open.set()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Say nothing in streams until the end, and then everything."""
        self._speaks.clear()
        try:
            yield
        finally:
            self._speaks.set()

    def fail(self, verb: str, *faults: Fault) -> None:
        self.faults.extend((verb, fault) for fault in faults)

    # The nodes

    @property
    def nodes(self) -> dict[str, Json]:
        with self._changed:
            return deepcopy(self._nodes)

    @property
    def events(self) -> list[Json]:
        """All events, the oldest first."""
        with self._changed:
            return deepcopy(list(self._events.values()))

    def expire_events(self) -> None:
        """Forget all events, as an API server does an hour after each came last."""
        with self._changed:
            self._events.clear()

    @property
    def revision(self) -> int:
        return self._revision

    def put(
        self, name: str, *, cidr: str = "", annotations: dict[str, str] | None = None, **spec: Any
    ) -> None:
        """Make or replace a node."""
        with self._changed:
            is_new = name not in self._nodes
            self._created += is_new
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))
            node: Json = {
                "kind": "Node",
                "apiVersion": "v1",
                "metadata": {"name": name, "uid": f"uid-{self._created}", "labels": {"a": "b"}},
                "spec": {"podCIDR": cidr, "podCIDRs": [cidr], **spec} if cidr else {**spec},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], **self.ballast},
            }
            if is_new:
                node["metadata"]["creationTimestamp"] = stamp
            else:
                node["metadata"] |= {
                    key: self._nodes[name]["metadata"][key] for key in ("creationTimestamp", "uid")
                }
            if annotations is not None:
                node["metadata"]["annotations"] = dict(annotations)
            self._store(node, "ADDED" if is_new else "MODIFIED")

    def annotate(self, name: str, **changes: str | None) -> None:
        """Set, or with None remove, annotations given without prefix and with `_` for `-`."""
        with self._changed:
            node = deepcopy(self._nodes[name])
            annotations = node["metadata"].setdefault("annotations", {})
            for key, value in changes.items():
                full = PREFIX + key.replace("_", "-")
                if value is None:
                    annotations.pop(full, None)
                else:
                    annotations[full] = value
            self._store(node, "MODIFIED")

    def heartbeat(self, name: str) -> None:
        with self._changed:
            node = deepcopy(self._nodes[name])
            node["status"]["conditions"][0]["lastHeartbeatTime"] = str(self._revision)
            self._store(node, "MODIFIED")

    def delete(self, name: str) -> None:
        with self._changed:
            self._store(self._nodes.pop(name), "DELETED")

    def put_raw(self, name: str, node: Json) -> None:
        """Store an object that no API server would take."""
        with self._changed:
            self._store(node, "ADDED" if name not in self._nodes else "MODIFIED")

    def compact(self) -> None:
        """Forget the history: every list in progress and every watch behind now is lost."""
        with self._changed:
            self._compacted = self._revision
            self._history.clear()
            self._lists.clear()

    def restore_backup(self) -> None:
        """Fall back to far lower revisions, as after a restored backup."""
        with self._changed:
            self._revision, self._compacted = 10, 0
            self._history.clear()
            self._lists.clear()
            for node in self._nodes.values():
                node["metadata"]["resourceVersion"] = "10"

    def advance(self) -> None:
        """Let revisions pass that concern no node, as other kinds of objects make them."""
        with self._changed:
            self._revision += 50

    def bookmark(self) -> None:
        """Send one to every open stream."""
        with self._changed:
            self._bookmarks += 1
            self._changed.notify_all()

    def wait_for(self, condition: str, count: int, *, seconds: float = 10.0) -> None:
        """Wait until `requests` has `count` of a verb, or `streams` or `bookmarked` is `count`."""
        deadline = time.monotonic() + seconds
        while self._count(condition) < count:
            assert time.monotonic() < deadline, f"{condition}: {self._count(condition)} of {count}"
            time.sleep(POLL)

    def of(self, verb: str) -> list[Seen]:
        return [seen for seen in list(self.requests) if seen.verb == verb]

    def _count(self, condition: str) -> int:
        if condition in {"streams", "bookmarked"}:
            return int(getattr(self, condition))
        return len(self.of(condition))

    def _store(self, node: Json, kind: str) -> None:
        self._revision += 1
        node["metadata"]["resourceVersion"] = str(self._revision)
        if kind != "DELETED":
            self._nodes[node["metadata"]["name"]] = node
        self._history.append((self._revision, _line(kind, node)))
        self._changed.notify_all()

    # What requests ask for

    def admit(self, seen: Seen, resource: str) -> None:
        self.requests.append(seen)
        kind, _, token = seen.authorization.partition(" ")
        if self.tokens is not None and (kind != TOKEN_TYPE or token not in self.tokens):
            self.when_unauthorized()
            raise RefusalError(401, "Unauthorized")
        if (seen.verb, resource) in self.forbidden:
            raise RefusalError(403, f'User "x" cannot {seen.verb} resource "{resource}"')

    def take_fault(self, verb: str) -> Fault | None:
        if self.faults and self.faults[0][0] in (verb, "any"):
            return self.faults.popleft()[1]
        return None

    def wait_open(self) -> None:
        self._open.wait(30)

    def page(self, query: dict[str, str]) -> Json:
        limit = min(int(query.get("limit", "0")) or 1 << 30, self.page_limit)
        with self._changed:
            if "continue" in query:
                token = json.loads(base64.b64decode(query["continue"]))
                revision, start = token["rv"], token["start"]
                if revision < self._compacted or revision not in self._lists:
                    raise RefusalError(410, "The provided continue parameter is too old")
            else:
                revision, start = self._revision, 0
                items = [deepcopy(self._nodes[name]) for name in sorted(self._nodes)]
                self._lists[revision] = items
            items = self._lists[revision]
            metadata: Json = {"resourceVersion": str(revision)}
            if start + limit < len(items):
                rest = json.dumps({"rv": revision, "start": start + limit}).encode()
                metadata["continue"] = base64.b64encode(rest).decode()
            page = items[start : start + limit]
        return {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": page}

    def check_watch(self, revision: int) -> bytes:
        """Return the event that ends the watch at once, empty if it may go on."""
        with self._changed:
            if revision > self._revision:
                raise RefusalError(504, "Too large resource version")
            if revision >= self._compacted:
                return b""
            if not self.gone_as_event:
                raise RefusalError(410, "too old resource version")
            return _line("ERROR", _status(410, "too old resource version"))

    def lines(self, revision: int, seconds: float) -> Iterator[bytes]:
        """Yield the lines of one watch; empty ones show that it is still there.

        Ends by itself after `seconds`. Raises ConnectionError when it is cut.
        """
        deadline = time.monotonic() + seconds
        generation, bookmarks = self._generation, self._bookmarks
        while time.monotonic() < deadline:
            self._speaks.wait(30)
            with self._changed:
                if generation != self._generation:
                    raise ConnectionError
                if revision < self._compacted:
                    yield _line("ERROR", _status(410, "compacted"))
                    return
                new = self._tail(revision)
                is_marked, bookmarks = bookmarks != self._bookmarks, self._bookmarks
                if not new and not is_marked:
                    self._changed.wait(POLL * 5)
            for at, line in new:
                revision = at
                yield line
            if is_marked:
                revision = max(revision, self._revision if not new else revision)
                metadata = {"resourceVersion": str(revision)}
                yield _line("BOOKMARK", {"kind": "Node", "metadata": metadata, "spec": {}})
                self.bookmarked += 1
            if not new:
                yield b""

    def _tail(self, revision: int) -> list[tuple[int, bytes]]:
        tail: list[tuple[int, bytes]] = []
        for at, line in reversed(self._history):
            if at <= revision:
                break
            tail.append((at, line))
        return tail[::-1]

    def count_streams(self, by: int) -> None:
        with self._changed:
            self.streams += by

    def create_event(self, namespace: str, event: Json) -> Json:
        """Take in an event; refuse what an API server refuses of one about a node."""
        name, about = event["metadata"]["name"], event["involvedObject"]
        if event["metadata"]["namespace"] != namespace or len(event["message"].encode()) > 1024:
            raise RefusalError(422, "invalid")
        if about.get("namespace", "default") != namespace:
            raise RefusalError(422, "involvedObject.namespace: does not match event.namespace")
        with self._changed:
            if name in self._events:
                raise RefusalError(409, f'events "{name}" already exists')
            self._events[name] = event
        return event

    def patch_event(self, name: str, patch: Json) -> Json:
        """Merge into an event, of which only single values are ever patched."""
        with self._changed:
            if name not in self._events:
                raise RefusalError(404, f'events "{name}" not found')
            self._events[name] |= patch
            return deepcopy(self._events[name])

    def get(self, name: str) -> Json:
        with self._changed:
            if name not in self._nodes:
                raise RefusalError(404, f'nodes "{name}" not found')
            return deepcopy(self._nodes[name])

    def patch(self, name: str, patch: Json) -> Json:
        """Apply a strategic merge: annotations by key, conditions by type."""
        with self._changed:
            node = self.get(name)
            for key, value in patch.get("metadata", {}).get("annotations", {}).items():
                annotations = node["metadata"].setdefault("annotations", {})
                annotations[key] = value
                if value is None:
                    del annotations[key]
            for new in patch.get("status", {}).get("conditions", []):
                conditions = node["status"]["conditions"]
                old = next((each for each in conditions if each["type"] == new["type"]), None)
                if old is None:
                    conditions.append(new)
                else:
                    old.update(new)
            if node != self._nodes[name]:
                self._store(node, "MODIFIED")
            return node


def _line(kind: str, item: Json) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _status(code: int, message: str) -> Json:
    return {"kind": "Status", "status": "Failure", "message": message, "code": code, "metadata": {}}


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, api: ApiServer, address: tuple[str, int], tls: ssl.SSLContext | None
    ) -> None:
        self.api = api
        self._tls = tls
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:
            self.api.wait_open()
            request.settimeout(5)
            request = self._tls.wrap_socket(request, server_side=True)
            request.settimeout(None)
        with self._lock:
            self._sockets.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._sockets.discard(request)
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up, and tests break connections on purpose."""

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_PATCH(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def do_POST(self) -> None:
        self.do_PATCH()

    def _serve(self, body: bytes) -> None:
        api, url = self.server.api, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        shown = url.path.removeprefix(api.base) if url.path.startswith(api.base) else "nowhere"
        path = [unquote(part) for part in shown.strip("/").split("/")]
        verb = _verb(self.command, path, query)
        seen = Seen(
            verb,
            url.path,
            query,
            body,
            self.headers.get("Content-Type", ""),
            self.headers.get("Authorization", ""),
        )
        api.wait_open()
        fault = api.take_fault(verb)
        try:
            if fault is not None:
                api.requests.append(seen)
                self._misbehave(fault)
                return
            api.admit(seen, _resource(path))
            self._answer_right(api, seen, path)
        except RefusalError as refusal:
            self._send(refusal.code, json.dumps(_status(refusal.code, str(refusal))).encode())

    def _answer_right(self, api: ApiServer, seen: Seen, path: list[str]) -> None:
        match path, seen.verb:
            case ["api", "v1", "nodes"], "list":
                self._send(200, json.dumps(api.page(seen.query)).encode())
            case ["api", "v1", "nodes"], "watch":
                self._stream(api, seen.query)
            case ["api", "v1", "nodes", name], "get":
                self._send(200, json.dumps(api.get(name)).encode())
            case ["api", "v1", "nodes", name, "status"], "patch":
                if seen.content_type != PATCH_TYPE:
                    raise RefusalError(415, seen.content_type)
                self._send(200, json.dumps(api.patch(name, json.loads(seen.body))).encode())
            case ["api", "v1", "namespaces", space, "events", *rest], _:
                self._answer_about_events(api, seen, space, rest)
            case ["api", "v1", "namespaces", space, "pods", pod], "get":
                if (space, pod) not in api.pods:
                    raise RefusalError(404, f'pods "{pod}" not found')
                spec = {"nodeName": api.pods[space, pod]}
                self._send(200, json.dumps({"kind": "Pod", "spec": spec}).encode())
            case _:
                raise RefusalError(404, f"no such path: {self.path}")

    def _answer_about_events(
        self, api: ApiServer, seen: Seen, space: str, names: list[str]
    ) -> None:
        wanted = OBJECT_TYPE if seen.verb == "create" else PATCH_TYPE
        if seen.content_type != wanted:
            raise RefusalError(415, seen.content_type)
        document = json.loads(seen.body)
        match names, seen.verb:
            case [], "create":
                self._send(201, json.dumps(api.create_event(space, document)).encode())
            case [name], "patch" if space == "default":
                self._send(200, json.dumps(api.patch_event(name, document)).encode())
            case _:
                raise RefusalError(404, f"no such path: {self.path}")

    def _misbehave(self, fault: Fault) -> None:
        self.close_connection = True
        fault.then()
        if fault.status:
            text = fault.text or json.dumps(_status(fault.status, "made to fail"))
            self._send(fault.status, text.encode(), fault.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status, HTTPStatus(status).phrase)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        if self.server.api.hangs_up:
            self.send_header("Connection", "close")
        if len(body) % 2:  # half of the answers one way, half the other
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 40_000):
                self._chunk(body[at : at + 40_000])
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _stream(self, api: ApiServer, query: dict[str, str]) -> None:
        self.close_connection = True
        revision = int(query["resourceVersion"])
        end = api.check_watch(revision)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        api.count_streams(+1)
        try:
            for line in [end] if end else api.lines(revision, float(query["timeoutSeconds"])):
                for at in range(0, len(line), api.piece):
                    self._chunk(line[at : at + api.piece])
                if not line:
                    self._notice_hang_up()
            self.wfile.write(b"0\r\n\r\n")
        finally:
            api.count_streams(-1)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _notice_hang_up(self) -> None:
        """Raise ConnectionError if the client is gone; it never sends while it watches."""
        self.connection.settimeout(0.0)
        try:
            if not self.connection.recv(1):
                raise ConnectionError
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        finally:
            self.connection.settimeout(None)


_WRITES = {"PATCH": "patch", "POST": "create"}


def _verb(command: str, path: list[str], query: dict[str, str]) -> str:
    if command in _WRITES:
        return _WRITES[command]
    if path[-1] != "nodes":
        return "get"
    return "watch" if query.get("watch") == "true" else "list"


def _resource(path: list[str]) -> str:
    for kind in ("pods", "events"):
        if kind in path:
            return kind
    return "nodes/status" if path[-1] == "status" else "nodes"
