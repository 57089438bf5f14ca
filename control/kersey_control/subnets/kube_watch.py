"""Following the cluster's nodes through outages: list, watch, resume, list again after a gap.

It promises that whoever applies what it yields, in order, has the nodes as the API server had them
at some revision, later and later ones, and that it never ends or raises because of the server. A
stream that ends or is cut is taken up where it was, in silence; only a server that does not take
it up again is an outage. While the server is away it is tried with jittered, growing pauses.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlencode

from kersey_control.backoff import Backoff
from kersey_control.errors import InvalidInputError, StoreError, StoreUnavailableError
from kersey_control.subnets.kube_http import (
    BusyError,
    Connection,
    HistoryLostError,
    KubeClient,
    Request,
)
from kersey_control.subnets.kube_node import (
    Bookmark,
    Change,
    Node,
    Page,
    StreamError,
    Unreadable,
    decode_event,
    decode_page,
)
from kersey_control.subnets.kube_options import AnnotationKeys

logger = logging.getLogger(__name__)

PAGE_SIZE = 250
"""Nodes in one answer, some 2 MB: what a list takes in memory while it is read."""

LIST_ATTEMPTS = 5
RETRY_INITIAL = 0.2
RETRY_CAP = 15.0
STEADY = 60.0  # seconds between two failures after which the second one is a new trouble

SILENCE = 90.0
"""Seconds without a byte after which a stream is made anew: API servers send a bookmark a minute"""

WATCH_SECONDS = (300, 600)
"""How long the server keeps one stream, chosen anew each time so that nodes do not fall in step."""

SHORT = 1.0
"""A stream that ends sooner, and without a word, is not opened again at once."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Every node at one instant, the oldest first."""

    nodes: tuple[Node | Unreadable, ...]


@dataclass(frozen=True, slots=True)
class Outage:
    """The server gives no changes; said once until Recovered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The server gives changes again."""


Followed: TypeAlias = Listing | Change | Outage | Recovered


def follow(client: KubeClient, keys: AnnotationKeys, stop: threading.Event) -> Iterator[Followed]:
    """Yield a Listing, then Changes, until `stop` is set or the client is closed."""
    follower = _Follower(client, keys, stop)
    while not follower.is_stopped:
        yield from follower.attempt()


class _Follower:
    """What must be remembered from one attempt to the next."""

    def __init__(self, client: KubeClient, keys: AnnotationKeys, stop: threading.Event) -> None:
        self._client = client
        self._keys = keys
        self._stop = stop
        self._revision = ""
        self._is_away = False
        self._backoff = Backoff(initial=RETRY_INITIAL, cap=RETRY_CAP)
        self._failed_at = float("-inf")
        self._rng = random.SystemRandom()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set() or self._client.is_closed

    def attempt(self) -> Iterator[Followed]:
        """Yield what one connection gives; pause before returning if it failed."""
        try:
            with self._client.connected(self._stop) as connection:
                yield from self._list_if_unknown(connection)
                yield from self._watch(connection)
        except HistoryLostError as error:
            logger.info("nodes are listed again", extra={"reason": str(error)})
            if not self._revision:  # it was a list that expired between two pages
                yield from self._away(str(error))
            self._revision = ""
            self._pause()
        except StoreError as error:
            if self.is_stopped:
                return
            yield from self._away(str(error))
            self._pause(error.retry_after if isinstance(error, BusyError) else 0.0)

    def _list_if_unknown(self, connection: Connection) -> Iterator[Followed]:
        if self._revision:
            return
        pages = tuple(_pages(connection, self._keys))
        yield from self._back()
        self._revision = pages[0].revision
        yield Listing(_by_age(pages))

    def _watch(self, connection: Connection) -> Iterator[Followed]:
        began, is_silent = time.monotonic(), True
        lines = connection.stream(self._watch_request(), silence=SILENCE)
        yield from self._back()
        for line in lines:
            is_silent = False
            yield from self._take(line)
        if is_silent and time.monotonic() - began < SHORT:
            self._pause()

    def _take(self, line: bytes) -> Iterator[Change]:
        """Yield the change that a line says and remember how far we are."""
        try:
            event = decode_event(line, self._keys)
        except InvalidInputError as error:
            raise HistoryLostError(f"the watch cannot be read: {error}") from None
        match event:
            case Bookmark(revision):
                self._revision = revision or self._revision
            case StreamError(code, message):
                raise HistoryLostError(f"the watch was ended: {code} {message}")
            case Change(_, _, revision):
                yield event
                self._revision = revision or self._revision

    def _watch_request(self) -> Request:
        query = {
            "watch": "true",
            "resourceVersion": self._revision,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": self._rng.randint(*WATCH_SECONDS),
        }
        return Request("watch", "nodes", f"/api/v1/nodes?{urlencode(query)}")

    def _away(self, reason: str) -> Iterator[Followed]:
        if not self._is_away:
            self._is_away = True
            yield Outage(reason)

    def _back(self) -> Iterator[Followed]:
        if self._is_away:
            self._is_away = False
            yield Recovered()

    def _pause(self, at_least: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._failed_at > STEADY:
            self._backoff.reset()
        self._failed_at = now
        self._client.pause(at_least + self._backoff.delay(), self._stop)


def list_nodes(client: KubeClient, keys: AnnotationKeys) -> Listing:
    """Return every node once. Raises StoreError."""
    for _ in range(LIST_ATTEMPTS):
        with suppress(HistoryLostError), client.connected() as connection:  # between two pages
            return Listing(_by_age(tuple(_pages(connection, keys))))
    raise StoreUnavailableError("kubernetes: the list of nodes expired while it was read")


def _pages(connection: Connection, keys: AnnotationKeys) -> Iterator[Page]:
    """Yield all pages of a list; together they are one instant. Raises StoreError."""
    continuation = ""
    while True:
        query: dict[str, str | int] = {"limit": PAGE_SIZE}
        if continuation:
            query["continue"] = continuation
        request = Request("list", "nodes", f"/api/v1/nodes?{urlencode(query)}")
        try:
            page = decode_page(connection.ask(request), keys)
        except InvalidInputError as error:
            raise StoreUnavailableError(f"kubernetes: {request}: {error}") from None
        yield page
        continuation = page.continuation
        if not continuation:
            return


def _by_age(pages: tuple[Page, ...]) -> tuple[Node | Unreadable, ...]:
    dated = [pair for page in pages for pair in page.nodes]
    dated.sort(key=lambda pair: (pair[0], pair[1].name))
    unreadable = (node for page in pages for node in page.unreadable)
    return (*unreadable, *(node for _, node in dated))
