"""The lease keeper against a scripted store: what it asks for, and what it reports, in order."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.errors import StoreConflictError, StoreUnavailableError
from kersey_control.events import StoreEvent
from kersey_control.keeper import LeaseHeld, LeaseKeeper, LeaseTrouble, renewal_delay
from kersey_control.lease import Lease
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets.base import Claim, OwnLease

CONFIG = parse_network_config(b'{"Network":"10.244.0.0/16"}')
CLAIM = Claim(
    node_id="node-1", public_ip=IPv4Address("198.18.0.10"), backend_type="vxlan", backend_data=b"{}"
)
SUBNET = IPv4Network("10.244.7.0/24")
DAY = 86400.0


class ScriptedStore:
    """Answer each call with the next step of a script, and remember what was asked."""

    def __init__(self, *steps: Callable[[Claim], OwnLease]) -> None:
        self._steps = iter(steps)
        self.calls: list[tuple[str, Claim]] = []

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        assert config is CONFIG
        self.calls.append(("acquire", claim))
        return next(self._steps)(claim)

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        assert own.lease.subnet == SUBNET
        self.calls.append(("renew", claim))
        return next(self._steps)(claim)

    def read_config(self) -> bytes:
        raise NotImplementedError

    def watch_config(self, stop: threading.Event) -> Iterator[bytes]:
        raise NotImplementedError

    def watch(self, stop: threading.Event) -> Iterator[StoreEvent]:
        raise NotImplementedError


def granted(*, ttl: float | None = DAY) -> Callable[[Claim], OwnLease]:
    def grant(claim: Claim) -> OwnLease:
        lease = Lease(subnet=SUBNET, public_ip=claim.public_ip, backend_type=claim.backend_type)
        expires = None if ttl is None else time.time() + ttl
        return OwnLease(lease=lease, expires_at=expires, revision=1)

    return grant


def refused(error: Exception) -> Callable[[Claim], OwnLease]:
    def refuse(_: Claim) -> OwnLease:
        raise error

    return refuse


def keeper(
    store: ScriptedStore, *, margin: float = 3600.0
) -> tuple[LeaseKeeper, "queue.Queue[LeaseHeld | LeaseTrouble]"]:
    reports: queue.Queue[LeaseHeld | LeaseTrouble] = queue.Queue()
    return (
        LeaseKeeper(
            store=store, config=CONFIG, claim=CLAIM, renew_margin=margin, report=reports.put
        ),
        reports,
    )


@pytest.mark.parametrize(
    ("expires_at", "expected"), [(None, None), (10_000.0, 5400.0), (2_000.0, 0.0)]
)
def test_renewal_is_due_a_margin_before_expiry(
    expires_at: float | None, expected: float | None
) -> None:
    assert renewal_delay(expires_at=expires_at, margin=3600.0, now=1000.0) == expected


def test_a_lease_inside_its_margin_is_renewed_not_claimed_again() -> None:
    store = ScriptedStore(granted(ttl=10.0), granted())
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        reports.get(timeout=5)
    assert [call for call, _ in store.calls] == ["acquire", "renew"]


def test_an_outage_is_reported_once_however_many_tries_it_takes() -> None:
    down = refused(StoreUnavailableError("no answer"))
    store = ScriptedStore(down, down, granted())
    held, reports = keeper(store)
    with held:
        assert isinstance(reports.get(timeout=5), LeaseTrouble)
        assert isinstance(reports.get(timeout=5), LeaseHeld)
    assert len(store.calls) == 3


def test_reclaim_asks_for_the_subnet_that_we_had() -> None:
    store = ScriptedStore(granted(), granted())
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        held.reclaim()
        reports.get(timeout=5)
    assert store.calls[1] == ("acquire", replace(CLAIM, previous=SUBNET))


def test_reclaim_survives_an_outage() -> None:
    down = refused(StoreUnavailableError("no answer"))
    store = ScriptedStore(granted(), down, granted())
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        held.reclaim()
        assert isinstance(reports.get(timeout=5), LeaseTrouble)
        assert isinstance(reports.get(timeout=5), LeaseHeld)
    assert [call for call, _ in store.calls] == ["acquire", "acquire", "acquire"]


def test_changed_data_is_published_by_renewal() -> None:
    store = ScriptedStore(granted(), granted())
    held, reports = keeper(store)
    moved = replace(CLAIM, public_ip=IPv4Address("198.18.0.99"))
    with held:
        reports.get(timeout=5)
        held.publish(moved)
        report = reports.get(timeout=5)
    assert isinstance(report, LeaseHeld)
    assert report.own.lease.public_ip == moved.public_ip
    assert store.calls[1] == ("renew", moved)


def test_a_lost_compare_and_swap_leads_to_a_new_claim_for_the_same_subnet() -> None:
    lost = refused(StoreConflictError("record changed"))
    store = ScriptedStore(granted(ttl=10.0), lost, granted())
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        reports.get(timeout=5)
    assert [call for call, _ in store.calls] == ["acquire", "renew", "acquire"]
    assert store.calls[2][1].previous == SUBNET


def test_a_defect_in_the_store_does_not_end_the_keeper(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kersey_control.keeper.RETRY_CAP", 0.01)
    store = ScriptedStore(refused(ZeroDivisionError("defect")), granted())
    held, reports = keeper(store)
    with held:
        assert isinstance(reports.get(timeout=5), LeaseHeld)
    assert "lease keeper failed" in caplog.text
