"""Our own lease: claimed, renewed and, when it is lost, claimed again, on a thread of its own.

A store that hangs or refuses holds up nothing but this thread: the keeper never raises to the
daemon, never gives a subnet up, and reports a trouble once, not once per try.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeAlias

from kersey_control.backoff import Backoff
from kersey_control.clocks import Moment
from kersey_control.errors import KerseyError, StoreConflictError
from kersey_control.netconfig import NetworkConfig
from kersey_control.subnets.base import Claim, OwnLease, SubnetStore

logger = logging.getLogger(__name__)

RETRY_INITIAL = 0.5
RETRY_CAP = 30.0
CONFLICT_PAUSE = 0.2
JOIN_TIMEOUT = 6.0
LOOK = 30.0
"""Seconds after which the clocks are asked again: they may jump while this thread waits."""


@dataclass(frozen=True, slots=True)
class LeaseHeld:
    """The store holds this lease for us as of now."""

    own: OwnLease


@dataclass(frozen=True, slots=True)
class LeaseTrouble:
    """The store does not give or renew our lease; retried until it does."""

    error: KerseyError


KeeperReport: TypeAlias = LeaseHeld | LeaseTrouble


def renewal_delay(*, expires_at: Moment | None, margin: float, now: Moment) -> float | None:
    """Return seconds until the lease must be renewed, None for a reservation, at least 0."""
    if expires_at is None:
        return None
    return max(0.0, now.until(expires_at) - margin)


class LeaseKeeper:
    """Keep one claim alive in the store. A context manager; the thread ends with it."""

    def __init__(
        self,
        *,
        store: SubnetStore,
        config: NetworkConfig,
        claim: Claim,
        renew_margin: float,
        report: Callable[[KeeperReport], None],
    ) -> None:
        self._store = store
        self._config = config
        self._renew_margin = renew_margin
        self._report = report
        self._lock = threading.Lock()
        self._claim = claim
        self._reclaim = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(JOIN_TIMEOUT)

    def publish(self, claim: Claim) -> None:
        """Write changed data (a new address, a new MAC) to our lease once the store answers."""
        with self._lock:
            self._claim = claim
        self._wake.set()

    def configure(self, config: NetworkConfig) -> None:
        """Claim by another config from now on; a lease that we hold stays."""
        with self._lock:
            self._config = config

    def reclaim(self) -> None:
        """Claim the lease again: the store says that it is gone."""
        with self._lock:
            self._reclaim = True
        self._wake.set()

    def _run(self) -> None:
        own: OwnLease | None = None
        written: Claim | None = None
        trouble: type[KerseyError] | None = None
        backoff = Backoff(initial=RETRY_INITIAL, cap=RETRY_CAP)
        while not self._stop.is_set():
            self._wake.clear()
            claim, config, lost = self._wanted()
            try:
                if own is None or written is None or lost:
                    own = self._store.acquire(_returning(claim, own), config)
                elif claim != written or self._until_renewal(own) == 0.0:
                    own = self._store.renew(own, claim)
                written, trouble = claim, None
                backoff.reset()
                self._report(LeaseHeld(own))  # again, too: who failed to take it in has another try
                delay = self._pause(own)
            except StoreConflictError:
                written, delay = None, CONFLICT_PAUSE
            except KerseyError as error:
                self._keep_request(lost=lost)
                # By kind: the words differ from try to try, with the endpoint that was asked first.
                if type(error) is not trouble:
                    trouble = type(error)
                    self._report(LeaseTrouble(error))
                delay = backoff.delay()
            except Exception:
                # The daemon must outlive a defect here: the datapath does not need this thread.
                logger.exception("lease keeper failed, trying again")
                self._keep_request(lost=lost)
                delay = RETRY_CAP
            self._wake.wait(delay)

    def _wanted(self) -> tuple[Claim, NetworkConfig, bool]:
        with self._lock:
            lost, self._reclaim = self._reclaim, False
            return self._claim, self._config, lost

    def _keep_request(self, *, lost: bool) -> None:
        with self._lock:
            self._reclaim = self._reclaim or lost

    def _pause(self, own: OwnLease) -> float | None:
        left = self._until_renewal(own)
        return None if left is None else min(left, LOOK)

    def _until_renewal(self, own: OwnLease) -> float | None:
        now = Moment.now()
        return renewal_delay(expires_at=own.expires_at, margin=self._renew_margin, now=now)


def _returning(claim: Claim, own: OwnLease | None) -> Claim:
    """Ask for the subnet we had, whatever the claim said when the daemon started."""
    return claim if own is None else replace(claim, previous=own.lease.subnet)
