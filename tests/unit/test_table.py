"""The lease table: one code path for snapshots and events, and our own lease never a peer's."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.events import Changed, Lost, Removed, Restored, Skipped, Snapshot, StoreEvent
from kersey_control.lease import Lease
from kersey_control.table import Delta, LeaseTable


def lease(index: int, *, node: int | None = None, data: bytes = b"{}", node_id: str = "") -> Lease:
    return Lease(
        subnet=IPv4Network((0x0AF40000 + (index << 8), 24)),
        public_ip=IPv4Address(0xC6120000 + (index if node is None else node)),
        backend_type="vxlan",
        backend_data=data,
        node_id=node_id,
    )


OWN = lease(1, node_id="node-1")


def test_first_snapshot_reports_every_peer_and_not_ourselves() -> None:
    table = LeaseTable(OWN)
    assert table.apply(Snapshot((OWN, lease(2), lease(3)))) == Delta(changed=(lease(2), lease(3)))


def test_later_snapshots_never_report_our_own_lease_as_removed() -> None:
    table = LeaseTable(OWN)
    everything = Snapshot((OWN, lease(2)))
    table.apply(everything)
    assert table.apply(everything) == Delta()


def test_snapshot_reports_a_peer_whose_attributes_changed_during_the_gap() -> None:
    table = LeaseTable(OWN)
    table.apply(Snapshot((OWN, lease(2))))
    moved = lease(2, node=99)
    assert table.apply(Snapshot((OWN, moved))) == Delta(changed=(moved,))


def test_renewal_with_equal_attributes_changes_nothing() -> None:
    table = LeaseTable(OWN)
    table.apply(Snapshot((OWN, lease(2))))
    assert table.apply(Changed(lease(2))) == Delta()


def test_removal_of_a_peer_is_reported_once() -> None:
    table = LeaseTable(OWN)
    table.apply(Snapshot((OWN, lease(2))))
    assert table.apply(Removed(lease(2).subnet)) == Delta(removed=(lease(2).subnet,))
    assert table.apply(Removed(lease(2).subnet)) == Delta()


@pytest.mark.parametrize("event", [Removed(OWN.subnet), Snapshot((lease(2),))])
def test_loss_of_our_own_lease_is_reported_apart_from_peers(event: StoreEvent) -> None:
    table = LeaseTable(OWN)
    assert table.apply(event).removed == ()
    assert table.own_missing
    table.hold(OWN)
    assert not table.own_missing


def test_another_node_in_our_record_means_that_ours_is_gone() -> None:
    table = LeaseTable(OWN)
    assert table.apply(Changed(replace(OWN, node_id="thief"))) == Delta()
    assert table.own_missing


def test_our_record_rewritten_by_flannel_is_still_ours() -> None:
    table = LeaseTable(OWN)
    assert table.apply(Changed(replace(OWN, node_id=""))) == Delta()
    assert not table.own_missing


def test_our_record_written_by_flannel_of_another_node_is_not_ours() -> None:
    table = LeaseTable(OWN)
    assert table.apply(Changed(lease(1, node=7))) == Delta()
    assert table.own_missing


@pytest.mark.parametrize("event", [Skipped("key", "why"), Lost("down"), Restored()])
def test_trouble_in_the_store_changes_no_lease(event: StoreEvent) -> None:
    table = LeaseTable(OWN)
    table.apply(Snapshot((OWN, lease(2))))
    assert table.apply(event) == Delta()
    assert table.leases == (lease(2),)


LEASES = st.builds(
    lease,
    st.integers(min_value=2, max_value=6),
    node=st.integers(min_value=2, max_value=9),
    data=st.sampled_from([b"{}", b'{"VNI":1}']),
)
EVENTS = st.one_of(
    st.builds(Changed, LEASES),
    st.builds(lambda index: Removed(lease(index).subnet), st.integers(min_value=1, max_value=6)),
    st.builds(
        lambda leases: Snapshot(tuple({item.subnet: item for item in leases}.values())),
        st.lists(LEASES),
    ),
)


@given(st.lists(EVENTS))
def test_deltas_replayed_always_give_the_leases_of_the_table(events: list[StoreEvent]) -> None:
    table = LeaseTable(OWN)
    replayed: dict[IPv4Network, Lease] = {}
    for event in events:
        delta = table.apply(event)
        for subnet in delta.removed:
            del replayed[subnet]
        for changed in delta.changed:
            assert replayed.get(changed.subnet) != changed
            replayed[changed.subnet] = changed
    assert replayed == {item.subnet: item for item in table.leases}
    assert OWN.subnet not in replayed
