"""Peers carried into a real kernel, kept there, and what becomes of the odd ones."""

import os
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.addresses import Mac
from kersey_control.errors import KernelError
from kersey_control.forwarding import Condition, Home
from kersey_control.monitor import ChangeKind, KernelChange, Monitor, Watched, is_relevant
from kersey_control.peer import Peer
from kersey_control.reconcile import FdbEntry, Neighbour, Route
from testbed.waiting import wait_until
from vxlan_lab import (
    NETWORK,
    SUBNET,
    UPLINK_ADDRESS,
    Lab,
    expected_route,
    ip,
    now,
    peer,
    run,
    wait_told,
)

MAC = Mac("0e:00:00:00:00:aa")


class _Changes:
    """Hold what a monitor reports, and wait for its end by a change of our own."""

    def __init__(self) -> None:
        self.seen: list[KernelChange] = []
        self._marker = threading.Event()

    def __call__(self, change: KernelChange) -> None:
        if change.kind is ChangeKind.ADDRESS:
            self._marker.set()
        else:
            self.seen.append(change)

    def all(self) -> list[KernelChange]:
        """Return every change up to now."""
        self._marker.clear()
        ip("address add 127.0.0.99/32 dev lo")
        ip("address del 127.0.0.99/32 dev lo")
        assert self._marker.wait(10)
        return self.seen


def _reasons(lab: Lab, condition: Condition) -> dict[IPv4Network, str]:
    return {
        status.peer.subnet: status.reason
        for status in lab.forwarding.statuses()
        if status.condition is condition
    }


def test_peers_come_change_and_go_one_by_one(ready_lab: Lab) -> None:
    forwarding = ready_lab.forwarding
    forwarding.set_peers([peer(1)], now())
    forwarding.put(peer(2), now())
    assert ready_lab.holds(peer(1), peer(2))
    forwarding.put(peer(2, mac=MAC), now())
    assert ready_lab.holds(peer(1), peer(2, mac=MAC))
    forwarding.put(peer(2, mac=MAC, node="198.18.7.7"), now())
    assert ready_lab.holds(peer(1), peer(2, mac=MAC, node="198.18.7.7"))
    forwarding.remove(peer(1).subnet, now())
    assert ready_lab.holds(peer(2, mac=MAC, node="198.18.7.7"))
    forwarding.remove(peer(1).subnet, now())
    assert forwarding.audit(now()).repairs == 0


def test_kernel_is_left_alone_until_the_first_snapshot(ready_lab: Lab) -> None:
    ready_lab.forwarding.set_peers([peer(1), peer(2)], now())
    ready_lab.restart()
    ready_lab.ready()
    ready_lab.forwarding.put(peer(3), now())
    ready_lab.forwarding.remove(peer(2).subnet, now())
    assert ready_lab.forwarding.audit(now()).repairs == 0
    ready_lab.forwarding.retry_due(now())
    assert ready_lab.holds(peer(1), peer(2))
    result = ready_lab.forwarding.set_peers([peer(1)], now())
    assert ready_lab.holds(peer(1))
    assert (result.added, result.replaced, sum(result.removed.values())) == ({}, {}, 4)


def _flannel_peer(each: Peer) -> None:
    ip(f"neigh replace {each.subnet[0]} lladdr {each.mac} nud permanent dev flannel.1")
    run(*f"bridge fdb replace {each.mac} dst {each.node} dev flannel.1 self permanent".split())
    ip(f"route replace {each.subnet} via {each.subnet[0]} dev flannel.1 onlink proto boot")


def test_flannels_peers_are_adopted_without_a_gap_and_stale_ones_removed(lab: Lab) -> None:
    ip("link add flannel.1 type vxlan id 1 local 198.18.0.1 dev up0 dstport 8472 nolearning")
    ip("address add 10.128.0.0/32 dev flannel.1")
    ip("link set flannel.1 up")
    for number in (1, 2, 3):
        _flannel_peer(peer(number))
    lab.ready()
    changes = _Changes()
    wait_told()
    with Monitor(changes):
        lab.forwarding.set_peers([peer(1), peer(2, mac=MAC)], now())
        seen = changes.all()
    assert lab.holds(peer(1), peer(2, mac=MAC))
    gone = {change.key[0]: change.key[1:] for change in seen if change.gone}
    stale_route = next(c.key for c in seen if c.gone and c.key[0] is Route)
    assert gone.keys() == {Route, Neighbour, FdbEntry}
    assert [c.key for c in seen if c.gone and c.key[0] is Route] == [stale_route]
    assert stale_route[1] == int(peer(3).subnet[0])


def test_changed_mac_has_its_forwarding_entry_before_the_neighbour_names_it(
    ready_lab: Lab,
) -> None:
    ready_lab.forwarding.set_peers([peer(1)], now())
    changes = _Changes()
    wait_told()
    with Monitor(changes):
        ready_lab.forwarding.put(peer(1, mac=MAC), now())
        seen = changes.all()
    ifindex = ready_lab.backend.ifindex
    assert [(change.gone, change.key) for change in seen] == [
        (False, (FdbEntry, ifindex, MAC)),
        (False, (Neighbour, ifindex, int(peer(1).subnet[0]))),
        (True, (FdbEntry, ifindex, peer(1).mac)),
    ]


def test_deleted_device_is_restored_with_all_peers(ready_lab: Lab) -> None:
    peers = [peer(number) for number in range(1, 1001)]
    ready_lab.forwarding.set_peers(peers, now())
    ip("link del flannel.1")
    with pytest.raises(KernelError):
        ready_lab.forwarding.audit(now())
    ready_lab.ready()
    result = ready_lab.forwarding.audit(now())
    assert ready_lab.holds(*peers)
    assert result.added == {"FdbEntry": 1000, "Neighbour": 1000, "Nexthop": 1000, "Route": 1000}


@pytest.mark.parametrize(
    "disturbance",
    [
        "ip route del 10.128.1.0/24",
        "ip route replace 10.128.1.0/24 via 10.128.2.0 dev flannel.1 onlink",
        "ip neigh flush dev flannel.1 nud permanent",
        "ip neigh replace 10.128.1.0 lladdr 0e:00:00:00:00:77 nud permanent dev flannel.1",
        "ip neigh replace 10.128.1.0 lladdr 0e:2a:00:00:00:01 nud stale dev flannel.1",
        "ip nexthop flush",
        "ip link set flannel.1 down",
        "bridge fdb del 0e:2a:00:00:00:01 dev flannel.1 self",
        "bridge fdb replace 0e:2a:00:00:00:01 dev flannel.1 dst 198.18.9.9 self",
        "bridge fdb add 0e:00:00:00:00:77 dev flannel.1 dst 198.18.9.9 self",
        "ip neigh add 10.128.9.0 lladdr 0e:00:00:00:00:77 nud permanent dev flannel.1",
    ],
)
def test_foreign_change_is_noticed_and_repaired(ready_lab: Lab, disturbance: str) -> None:
    peers = (peer(1), peer(2))
    ready_lab.forwarding.set_peers(peers, now())
    relevant = _relevant(ready_lab)
    wait_told()
    with Monitor(relevant):
        run(*disturbance.split())
        wait_until(lambda: relevant.seen, timeout=5, what="a relevant change")
    assert not ready_lab.holds(*peers)
    ready_lab.ready()
    assert ready_lab.forwarding.audit(now()).repairs > 0
    assert ready_lab.holds(*peers)


def _watched(lab: Lab) -> Watched:
    return Watched(lab.backend.ifindex, lab.uplink.ifindex, frozenset(["flannel.1", "up0"]))


def _relevant(lab: Lab) -> _Changes:
    """Return a listener that keeps only relevant changes."""
    watched = _watched(lab)

    class Relevant(_Changes):
        def __call__(self, change: KernelChange) -> None:
            ours = change.kind is ChangeKind.ADDRESS
            if ours or is_relevant(change, watched, lab.forwarding.desired):
                super().__call__(change)

    return Relevant()


def test_our_own_programming_is_never_a_relevant_change(ready_lab: Lab) -> None:
    relevant = _relevant(ready_lab)
    wait_told()
    with Monitor(relevant, frozenset([ready_lab.rtnl.port_id])):
        ready_lab.forwarding.set_peers([peer(number) for number in range(1, 2001)], now())
        assert relevant.all() == []
        ready_lab.ready()
        ready_lab.forwarding.put(peer(1, mac=MAC), now())
        ready_lab.forwarding.audit(now())
        assert relevant.all() == []


def test_foreign_route_through_another_device_is_untouched_and_its_peer_fails(
    ready_lab: Lab,
) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.77 dev up0")
    foreign = ("10.128.1.0/24", "up0", "198.18.0.77", "boot", "")
    ready_lab.forwarding.set_peers([peer(1)], now())
    ready_lab.forwarding.put(peer(2), now())
    assert ready_lab.routes() == sorted([foreign, expected_route(peer(2))])
    assert "foreign" in _reasons(ready_lab, Condition.FAILING)[peer(1).subnet]
    assert peer(2).subnet in _reasons(ready_lab, Condition.PROGRAMMED)


def test_failing_peer_is_retried_when_due_and_holds_up_nobody(ready_lab: Lab) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.77 dev up0")
    forwarding = ready_lab.forwarding
    forwarding.set_peers([peer(1), peer(2)], 100.0)
    assert forwarding.next_retry == 100.5
    ip("route del 10.128.1.0/24 dev up0")
    forwarding.retry_due(100.4)
    assert not ready_lab.holds(peer(1), peer(2))
    forwarding.retry_due(100.5)
    assert ready_lab.holds(peer(1), peer(2))
    assert forwarding.next_retry is None


def test_retries_back_off_to_a_minute(ready_lab: Lab) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.77 dev up0")
    forwarding = ready_lab.forwarding
    forwarding.set_peers([peer(1)], 0.0)
    waits, time = [], 0.0
    for _ in range(10):
        assert forwarding.next_retry is not None
        waits.append(forwarding.next_retry - time)
        time = forwarding.next_retry
        forwarding.retry_due(time)
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_failing_peer_is_put_right_by_its_next_event(ready_lab: Lab) -> None:
    ip("route add 10.128.1.0/24 via 198.18.0.77 dev up0")
    ready_lab.forwarding.set_peers([peer(1)], now())
    ip("route del 10.128.1.0/24 dev up0")
    ready_lab.forwarding.put(peer(1, mac=MAC), now())
    assert ready_lab.holds(peer(1, mac=MAC))
    assert ready_lab.forwarding.next_retry is None


def test_peer_is_put_over_what_flannel_left_meanwhile(ready_lab: Lab) -> None:
    ready_lab.forwarding.set_peers([], now())
    _flannel_peer(peer(1))
    ready_lab.forwarding.put(peer(1), now())
    assert ready_lab.holds(peer(1))
    assert ready_lab.forwarding.next_retry is None


def test_device_missing_fails_the_peer_and_not_the_daemon(ready_lab: Lab) -> None:
    ready_lab.forwarding.set_peers([peer(1)], 0.0)
    ip("link del flannel.1")
    ready_lab.forwarding.put(peer(2), 0.0)
    assert "ENODEV" in _reasons(ready_lab, Condition.FAILING)[peer(2).subnet]
    ready_lab.forwarding.retry_due(10.0)
    assert peer(2).subnet in _reasons(ready_lab, Condition.FAILING)
    ready_lab.ready()
    ready_lab.forwarding.audit(20.0)
    assert ready_lab.holds(peer(1), peer(2))
    assert _reasons(ready_lab, Condition.FAILING) == {}


def test_newest_claimant_of_a_mac_is_programmed_and_the_older_one_waits(ready_lab: Lab) -> None:
    older, newest = peer(1), peer(2, mac=peer(1).mac)
    ready_lab.forwarding.set_peers([older, peer(3)], now())
    ready_lab.forwarding.put(newest, now())
    assert ready_lab.holds(newest, peer(3))
    assert older.subnet in _reasons(ready_lab, Condition.REFUSED)
    ready_lab.forwarding.remove(newest.subnet, now())
    assert ready_lab.holds(older, peer(3))


def test_newest_claimant_of_a_mac_wins_in_a_snapshot_too(ready_lab: Lab) -> None:
    older, newest = peer(2), peer(1, mac=peer(2).mac)
    ready_lab.forwarding.set_peers([older, newest], now())
    assert ready_lab.holds(newest)


def test_two_leases_of_one_node_share_its_forwarding_entry(ready_lab: Lab) -> None:
    old, new = peer(1), replace(peer(1), subnet=peer(9).subnet)
    ready_lab.forwarding.set_peers([old], now())
    ready_lab.forwarding.put(new, now())
    assert ready_lab.holds(old, new)
    ready_lab.forwarding.remove(old.subnet, now())
    assert ready_lab.holds(new)
    ready_lab.forwarding.remove(new.subnet, now())
    assert ready_lab.holds()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(peer(1), node=UPLINK_ADDRESS), "our own address 198.18.0.1"),
        (replace(peer(1), subnet=SUBNET), "our own 10.128.0.0/24"),
        (replace(peer(1), subnet=IPv4Network("10.128.0.128/25")), "our own 10.128.0.0/24"),
        (replace(peer(1), subnet=IPv4Network("10.128.0.0/16")), "our own 10.128.0.0/24"),
        (replace(peer(1), subnet=IPv4Network("10.1.0.0/24")), f"a part of {NETWORK}"),
        (replace(peer(1), subnet=IPv4Network("10.0.0.0/8")), f"a part of {NETWORK}"),
        (replace(peer(1), mac=None), "with a MAC"),
        (replace(peer(1), node=peer(1).subnet[7]), "10.128.1.7, a pod's address"),
        (replace(peer(1), node=SUBNET[7]), "10.128.0.7, a pod's address"),
    ],
)
def test_invalid_peer_is_refused_and_others_are_not(ready_lab: Lab, bad: Peer, reason: str) -> None:
    ready_lab.forwarding.set_peers([bad, peer(2)], now())
    assert ready_lab.holds(peer(2))
    assert reason in _reasons(ready_lab, Condition.REFUSED)[bad.subnet]


def test_peer_made_invalid_by_our_move_is_taken_away(ready_lab: Lab) -> None:
    ready_lab.forwarding.set_peers([peer(1), peer(2)], now())
    ready_lab.forwarding.move(
        Home(
            network=NETWORK, subnet=peer(1).subnet, addresses=frozenset([IPv4Address("198.18.0.3")])
        )
    )
    ready_lab.forwarding.audit(now())
    assert ready_lab.holds()


def test_ten_thousand_peers_at_once_and_one_changed_snapshot(ready_lab: Lab) -> None:
    peers = [peer(number) for number in range(1, 10_001)]
    ready_lab.forwarding.set_peers(peers, now())
    assert ready_lab.holds(*peers)
    changed = [*peers[1:-1], peer(1, mac=MAC)]
    result = ready_lab.forwarding.set_peers(changed, now())
    assert ready_lab.holds(*changed)
    assert result.repairs == 7


def test_failed_removal_is_tried_again(ready_lab: Lab) -> None:
    forwarding = ready_lab.forwarding
    forwarding.set_peers([peer(1), peer(2)], 0.0)
    os.seteuid(65534)  # without CAP_NET_ADMIN the kernel answers EPERM
    try:
        forwarding.remove(peer(2).subnet, 0.0)
    finally:
        os.seteuid(0)
    assert ready_lab.holds(peer(1), peer(2))
    assert forwarding.next_retry == 0.5
    forwarding.retry_due(0.5)
    assert ready_lab.holds(peer(1))
    assert forwarding.next_retry is None


def test_many_failures_at_once_are_one_log_line(
    ready_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kersey_control.forwarding")
    ready_lab.forwarding.set_peers([], now())
    os.seteuid(65534)
    try:
        peers = [peer(number) for number in range(1, 501)]
        assert len(ready_lab.forwarding.set_peers(peers, now()).failures) == 2000
        ready_lab.forwarding.audit(now())
    finally:
        os.seteuid(0)
    ready_lab.forwarding.audit(now())
    assert ready_lab.holds(*peers)
    assert caplog.messages == ["peers failing", "peers programmed after failures"]


def test_desired_state_is_never_half_a_snapshot(ready_lab: Lab) -> None:
    forwarding = ready_lab.forwarding
    peers = [peer(number) for number in range(1, 2001)]
    forwarding.set_peers(peers, now())
    sizes: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            sizes.add(len(forwarding.desired))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        forwarding.audit(now())
    done.set()
    reader.join()
    assert sizes == {8000}
