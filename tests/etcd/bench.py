"""Leases and claims of distinct nodes, and one key prefix of a server to put them under."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from etcd.etcd_server import EtcdServer
from kersey_control.lease import Lease, encode_lease, subnet_key
from kersey_control.subnets.base import Claim
from kersey_control.subnets.etcd import EtcdOptions


class Bench:
    """One key prefix on one server, and short words for what the tests do there."""

    def __init__(self, server: EtcdServer, prefix: str) -> None:
        self.server = server
        self.options = EtcdOptions(endpoints=(server.url,), prefix=prefix)
        self.subnets = f"{prefix}/subnets/"
        self.config_key = f"{prefix}/config"

    def key(self, lease: Lease) -> str:
        return self.subnets + subnet_key(lease.subnet, lease.subnet_v6)

    def put_lease(self, lease: Lease, *, seconds: int = 3600) -> int:
        """Write `lease` as another node would; 0 seconds makes a reservation. Returns lease id."""
        etcd_lease = self.server.grant(seconds) if seconds else 0
        self.server.put(self.key(lease), encode_lease(lease).decode(), lease=etcd_lease)
        return etcd_lease

    def etcd_lease_of(self, lease: Lease) -> int:
        found = self.server.get(self.key(lease))
        assert found is not None
        return int(found.get("lease", 0))


def make_lease(number: int, *, node_id: str = "") -> Lease:
    """Return the lease of a distinct peer."""
    return Lease(
        subnet=IPv4Network((int(IPv4Address("10.5.1.0")) + (number << 8), 24)),
        public_ip=IPv4Address("198.18.0.1") + number,
        backend_type="vxlan",
        backend_data=b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:01"}',
        node_id=node_id,
    )


def make_claim(number: int = 200, **changes: object) -> Claim:
    """Return the claim of the node that `make_lease` with the same number describes."""
    lease = make_lease(0)
    claim = Claim(
        node_id=f"node-{number}",
        public_ip=IPv4Address("198.18.0.1") + number,
        backend_type=lease.backend_type,
        backend_data=lease.backend_data,
    )
    return replace(claim, **changes)  # type: ignore[arg-type]  # the tests name real fields
