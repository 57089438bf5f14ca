"""Notices as Events of our node object, as the kubelet writes its own: for `kubectl describe node`.

It promises never to keep its caller waiting, to send few (`BURST` at once, then one each `INTERVAL`
seconds), to count what comes again instead of repeating it, and to try each once: what the API
server does not take at that moment is lost, as is what does not fit into the queue. Nothing depends
on events. Its thread begins with the first notice.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from kersey_control.allowance import Allowance
from kersey_control.errors import KerseyError
from kersey_control.notice import Notice
from kersey_control.subnets.kube_http import KubeClient, NotFoundError, Request

logger = logging.getLogger(__name__)

NAMESPACE = "default"
"""Where events belong whose object has no namespace; API servers refuse any other."""

COMPONENT = "kersey"
BURST = 25
INTERVAL = 300.0
"""As the kubelet and all that use the client library of Kubernetes: BURST, then one per INTERVAL"""

MAX_WAITING = 32
MAX_KNOWN = 64
MAX_MESSAGE = 1024
"""In bytes: longer ones API servers refuse."""
_LOOK = 0.5
_TARGET = f"/api/v1/namespaces/{NAMESPACE}/events"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Written:
    """An event that the API server has: its name there, and how often it came so far."""

    name: str
    count: int


def new_event(notice: Notice, node: str, now: datetime) -> tuple[str, bytes]:
    """Return name and JSON of an event that comes for the first time. `now` is aware, UTC.

    The node's uid is its name, which is what the kubelet writes and what `kubectl describe` asks
    for.
    """
    name = f"{node}.{int(now.timestamp() * 1e6):x}"
    stamp = _stamp(now)
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "reason": notice.reason,
        "message": notice.message.encode()[:MAX_MESSAGE].decode(errors="ignore"),
        "type": "Warning" if notice.is_warning else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
    return name, _encode(event)


def repeated_patch(count: int, now: datetime) -> bytes:
    """Return the patch that says of an event that it came for the `count`-th time."""
    return _encode({"count": count, "lastTimestamp": _stamp(now)})


class EventWriter:
    """Write notices as events. Ends with its client; methods may be called from any thread."""

    def __init__(self, client: KubeClient, node_name: Callable[[], str]) -> None:
        self._client = client
        self._node_name = node_name
        self._waiting: queue.Queue[Notice] = queue.Queue(MAX_WAITING)
        self._allowance = Allowance(rate=1 / INTERVAL, burst=BURST)
        self._known: OrderedDict[Notice, Written] = OrderedDict()
        self._reported: type[KerseyError] | None = None
        self._lock = threading.Lock()
        self._is_started = False

    def tell(self, notice: Notice) -> None:
        """Have the notice written soon, or lost. Returns at once."""
        with self._lock:
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._run, name="node-events", daemon=True).start()
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            logger.debug("event lost", extra={"event": notice.reason, "why": "queue full"})

    def _run(self) -> None:
        while not self._client.is_closed:
            try:
                notice = self._waiting.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if not self._allowance.take(time.monotonic()):
                logger.debug("event lost", extra={"event": notice.reason, "why": "too many"})
                continue
            try:
                self._write(notice, datetime.now(UTC))
            except KerseyError as error:
                self._report(error, notice)
            except Exception:  # the thread must outlive one event that cannot be written
                logger.exception("event not written", extra={"event": notice.reason})
            else:
                self._reported = None

    def _write(self, notice: Notice, now: datetime) -> None:
        known = self._known.pop(notice, None)
        try:
            written = self._create(notice, now) if known is None else self._count(known, now)
        except NotFoundError:
            if known is None:
                raise
            written = self._create(notice, now)  # the old one's time was over
        self._known[notice] = written
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _create(self, notice: Notice, now: datetime) -> Written:
        name, event = new_event(notice, self._node_name(), now)
        self._client.ask(Request("create", "events", _TARGET, event))
        return Written(name, 1)

    def _count(self, known: Written, now: datetime) -> Written:
        written = Written(known.name, known.count + 1)
        target = f"{_TARGET}/{quote(known.name, safe='')}"
        patch = repeated_patch(written.count, now)
        self._client.ask(Request("patch", "events", target, patch))
        return written

    def _report(self, error: KerseyError, notice: Notice) -> None:
        """Say once what keeps events from being written, by kind: the words differ each time."""
        if type(error) is self._reported or self._client.is_closed:
            return
        self._reported = type(error)
        extra = {"event": notice.reason, "reason": str(error)}
        logger.warning("events are not written, nothing depends on them", extra=extra)


def _stamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
