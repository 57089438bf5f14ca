"""Following a span of keys through outages: list, watch, resume, list again after a gap.

It promises that whoever applies what it yields, in order, has the span's state at some revision,
later and later ones, and that it never ends or raises because of the store. While the store is
away it tries again with jittered, growing pauses; it resumes where it was, without a gap, or says
everything anew when etcd has forgotten the changes between.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from kersey_control.backoff import Backoff
from kersey_control.errors import StoreError
from kersey_control.subnets.etcd_client import (
    EtcdClient,
    HistoryLostError,
    Listing,
    Position,
    Span,
    Update,
)

logger = logging.getLogger(__name__)

RETRY_INITIAL = 0.2
RETRY_CAP = 5.0
STEADY = 10.0  # seconds between two failures after which the second one is a new trouble


@dataclass(frozen=True, slots=True)
class Outage:
    """The store gives no changes; said once until Recovered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The store gives changes again."""


Followed: TypeAlias = Listing | Update | Outage | Recovered


def follow(client: EtcdClient, span: Span, stop: threading.Event) -> Iterator[Followed]:
    """Yield a Listing, then Updates, until `stop` is set or the client is closed."""
    follower = _Follower(client, span, stop)
    while not follower.is_stopped:
        yield from follower.attempt()


class _Follower:
    """What must be remembered from one attempt to the next."""

    def __init__(self, client: EtcdClient, span: Span, stop: threading.Event) -> None:
        self._client = client
        self._span = span
        self._stop = stop
        self._known: Position | None = None
        self._is_away = False
        self._backoff = Backoff(initial=RETRY_INITIAL, cap=RETRY_CAP)
        self._failed_at = float("-inf")

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set() or self._client.is_closed

    def attempt(self) -> Iterator[Followed]:
        """Yield what one connection gives; pause before returning if it failed."""
        try:
            yield from self._list_if_unknown()
            yield from self._watch()
        except HistoryLostError as error:
            logger.info("etcd history lost, listing again", extra={"reason": str(error)})
            self._known = None
            self._pause()
        except StoreError as error:
            if self.is_stopped:
                return
            yield from self._away(str(error))
            self._pause()

    def _list_if_unknown(self) -> Iterator[Followed]:
        if self._known is None:
            listing = self._client.list(self._span)
            yield from self._back()
            self._known = listing.position
            yield listing

    def _watch(self) -> Iterator[Followed]:
        if self._known is None:
            return
        for updates in self._client.watch(self._span, self._known, self._stop):
            yield from self._back()
            for update in updates:
                yield update
                # Not the response's own revision: etcd may send more changes below that one.
                self._known = Position(update.record.mod_revision, self._known.cluster_id)

    def _away(self, reason: str) -> Iterator[Followed]:
        if not self._is_away:
            self._is_away = True
            yield Outage(reason)

    def _back(self) -> Iterator[Followed]:
        if self._is_away:
            self._is_away = False
            yield Recovered()

    def _pause(self) -> None:
        now = time.monotonic()
        if now - self._failed_at > STEADY:
            self._backoff.reset()
        self._failed_at = now
        self._client.pause(self._backoff.delay(), self._stop)
