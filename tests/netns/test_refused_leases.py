"""A lease that can be no peer reaches nobody: not the kernel, a pump, programs or commands."""

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.events import Changed, Removed, Snapshot
from kersey_control.lease import Lease
from kersey_control.peer import Peer
from kersey_control.peers import Peers
from kersey_control.status import Status
from kersey_control.table import LeaseTable
from kersey_control.underlay import Underlay
from vxlan_lab import SUBNET, UPLINK_ADDRESS, Lab, now

OWN = Lease(subnet=SUBNET, public_ip=UPLINK_ADDRESS, node_id="here")


class Follower:
    """Remember the peers that it was told of."""

    def __init__(self) -> None:
        self.known: dict[IPv4Network, IPv4Address] = {}

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        self.known = {peer.subnet: peer.node for peer in peers}

    def put_peer(self, peer: Peer) -> None:
        self.known[peer.subnet] = peer.node

    def remove_peer(self, subnet: IPv4Network) -> None:
        self.known.pop(subnet, None)


def lease(subnet: str, node: str) -> Lease:
    last = IPv4Network(subnet).network_address.packed[2]
    data = {"VNI": 1, "VtepMAC": f"0e:2a:00:00:00:{last:02x}"}
    return Lease(
        subnet=IPv4Network(subnet),
        public_ip=IPv4Address(node),
        backend_type="vxlan",
        backend_data=json.dumps(data).encode(),
    )


GOOD = lease("10.128.1.0/24", "198.18.0.2")
BAD = [
    lease("10.128.2.0/24", str(UPLINK_ADDRESS)),  # ours, from before we lost that subnet
    lease("10.128.0.0/17", "198.18.0.4"),
    lease("192.0.2.0/24", "198.18.0.5"),
    lease("10.128.6.0/24", "10.128.6.9"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda each: str(each.subnet))
def test_nobody_hears_of_a_refused_lease(ready_lab: Lab, bad: Lease) -> None:
    follower, status = Follower(), Status(heartbeat=0.0)
    peers = Peers(
        table=LeaseTable(OWN),
        backend=ready_lab.backend,
        forwarding=ready_lab.forwarding,
        underlay=Underlay(ready_lab.rtnl),
        followers=(follower,),
        status=status,
    )
    only_good = {GOOD.subnet: GOOD.public_ip}
    peers.apply([Snapshot(leases=(OWN, GOOD, bad), skipped=())], now())
    assert follower.known == only_good
    assert status.refused.keys() == {bad.subnet}
    peers.apply([Removed(bad.subnet)], now())
    assert status.refused == {}
    peers.apply([Changed(bad)], now())
    assert follower.known == only_good
    assert status.refused.keys() == {bad.subnet}
    peers.audit(now())
    assert follower.known == only_good
    assert (status.peers_desired, status.peers_programmed) == (2, 1)
