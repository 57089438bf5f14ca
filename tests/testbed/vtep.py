"""A VXLAN node set up by hand, exactly as flannel sets one up: the foreign peer of our daemon.

Device `flannel.<VNI>` without learning, and per peer a permanent neighbour, an FDB entry and an
onlink route, in this order. It uses the kernel's own tools and none of our code.
"""

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from testbed.node import Node, PodSubnet


@dataclass(frozen=True, slots=True)
class Vtep:
    """One end of the tunnels: what its lease says, and the node it is on."""

    node: Node
    subnet: IPv4Network
    mac: str
    vni: int = 1
    port: int = 8472

    @property
    def device(self) -> str:
        return f"flannel.{self.vni}"

    @property
    def lease_key(self) -> str:
        """The last part of the lease's key."""
        return f"{self.subnet.network_address}-{self.subnet.prefixlen}"

    @property
    def lease_value(self) -> str:
        """The lease's value, byte for byte as flannel writes it."""
        data = {"VNI": self.vni, "VtepMAC": self.mac}
        record = {
            "PublicIP": str(self.node.address),
            "PublicIPv6": None,
            "BackendType": "vxlan",
            "BackendData": data,
        }
        return json.dumps(record, separators=(",", ":"))

    def add_peer(self, *, subnet: IPv4Network, address: IPv4Address, mac: str) -> None:
        """Send `subnet` through the tunnel to the node at `address`; repeating it does no harm."""
        base = subnet.network_address
        self.node.namespace.ip(
            f"neigh replace {base} lladdr {mac} dev {self.device} nud permanent",
        )
        self.node.namespace.run(
            *f"bridge fdb replace {mac} dev {self.device} dst {address} self permanent".split()
        )
        self.node.namespace.ip(f"route replace {subnet} via {base} dev {self.device} onlink")

    def remove_peer(self, *, subnet: IPv4Network, address: IPv4Address, mac: str) -> None:
        """Take back what `add_peer` did."""
        base = subnet.network_address
        self.node.namespace.ip(f"route del {subnet} via {base} dev {self.device} onlink")
        self.node.namespace.run(
            *f"bridge fdb del {mac} dev {self.device} dst {address} self".split()
        )
        self.node.namespace.ip(f"neigh del {base} dev {self.device}")


def make_vtep(node: Node, subnet: IPv4Network, *, vni: int = 1, port: int = 8472) -> Vtep:
    """Return the tunnel end on `node`; its pods get addresses from `subnet` from now on."""
    vtep = Vtep(node, subnet, mac=f"0e:00:00:00:01:{node.index:02x}", vni=vni, port=port)
    make_device(vtep)
    # The kernel has given the device what the uplink leaves after the tunnel's headers.
    mtu = int(node.namespace.run("cat", f"/sys/class/net/{vtep.device}/mtu").stdout)
    node.use_subnet(PodSubnet(IPv4Interface(f"{subnet[1]}/{subnet.prefixlen}"), mtu))
    return vtep


def make_device(vtep: Vtep) -> None:
    """Make the device of a tunnel end as flannel does, with its address, and set it up."""
    node = vtep.node
    node.namespace.ip(
        f"link add {vtep.device} address {vtep.mac} type vxlan id {vtep.vni} dev eth0"
        f" local {node.address} dstport {vtep.port} nolearning",
        f"addr add {vtep.subnet.network_address}/32 dev {vtep.device}",
        f"link set {vtep.device} up",
    )
