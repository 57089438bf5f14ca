"""The lease keeper against a scripted store: what it asks for, and what it reports, in order."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.clocks import Moment
from kersey_control.errors import StoreConflictError, StoreUnavailableError
from kersey_control.events import StoreEvent
from kersey_control.keeper import LeaseHeld, LeaseKeeper, LeaseTrouble, renewal_delay
from kersey_control.lease import Lease
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets.base import Claim, OwnLease
from testbed.waiting import wait_until

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
        expires = None if ttl is None else Moment.now().after(ttl)
        return OwnLease(lease=lease, expires_at=expires, revision=1)

    return grant


def stepped(*, wall: float = 0.0, boot: float = 0.0) -> Callable[[Claim], OwnLease]:
    """Grant a lease of a day, after which the clocks go on by so many seconds, or back."""

    def grant(claim: Claim) -> OwnLease:
        own = granted()(claim)
        assert own.expires_at is not None
        ends = Moment(own.expires_at.wall - wall, own.expires_at.boot - boot)
        return replace(own, expires_at=ends)

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
    ("expires_at", "expected"),
    [
        (None, None),
        (Moment(wall=10_000.0, boot=9_010.0), 5400.0),
        (Moment(wall=10_000.0, boot=8_010.0), 4400.0),
        (Moment(wall=9_000.0, boot=9_010.0), 4400.0),
        (Moment(wall=2_000.0, boot=9_010.0), 0.0),
        (Moment(wall=10_000.0, boot=20.0), 0.0),
    ],
)
def test_renewal_is_due_a_margin_before_expiry_by_either_clock(
    expires_at: Moment | None, expected: float | None
) -> None:
    now = Moment(wall=1000.0, boot=10.0)
    assert renewal_delay(expires_at=expires_at, margin=3600.0, now=now) == expected


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(stepped(wall=-7200, boot=DAY - 10), id="wall clock set back two hours"),
        pytest.param(stepped(wall=DAY - 10), id="paused for a day"),
    ],
)
def test_a_clock_that_lags_puts_no_renewal_off(first: Callable[[Claim], OwnLease]) -> None:
    store = ScriptedStore(first, granted())
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        reports.get(timeout=5)
    assert [call for call, _ in store.calls] == ["acquire", "renew"]


def test_a_clock_that_jumps_while_the_keeper_waits_is_noticed_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kersey_control.keeper.LOOK", 0.01)
    store = ScriptedStore(granted(), granted())
    real, looks = time.time, threading.Semaphore(0)
    ahead = 0.0

    def wall_clock() -> float:
        looks.release()
        return real() + ahead

    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        monkeypatch.setattr(time, "time", wall_clock)
        for _ in range(5):
            assert looks.acquire(timeout=5)
        assert [call for call, _ in store.calls] == ["acquire"]
        ahead = DAY - 10
        wait_until(lambda: len(store.calls) == 2, timeout=5, what="another write")
        monkeypatch.undo()
    assert [call for call, _ in store.calls] == ["acquire", "renew"]


def test_a_trouble_that_has_nothing_left_to_do_is_over() -> None:
    down = refused(StoreUnavailableError("no answer"))
    store = ScriptedStore(granted(), *[down] * 10)
    held, reports = keeper(store)
    with held:
        reports.get(timeout=5)
        held.publish(replace(CLAIM, public_ip=IPv4Address("198.18.0.99")))
        assert isinstance(reports.get(timeout=5), LeaseTrouble)
        held.publish(CLAIM)
        assert isinstance(reports.get(timeout=5), LeaseHeld)


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
