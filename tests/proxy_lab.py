"""Two nodes joined by a veth pair, a pod behind each, and a TUN device with a proxy on both.

Addresses and routes are set by iproute2 as flannel's udp backend sets them; nothing but the device,
the carrier and the proxy is our own code. Node 1 has 10.244.1.0/24, node 2 has 10.244.2.0/24.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from typing import Literal

from kersey_control.carriers import Carrier, IpipCarrier, UdpCarrier
from kersey_control.node_table import NodeTable
from kersey_control.options import SpoofCheck
from kersey_control.peer import Peer, Via
from kersey_control.proxy import Proxy
from kersey_control.tun import Tun
from testbed import Capture, Namespace

NETWORK = IPv4Network("10.244.0.0/16")
DEVICE = "flannel0"
MEGABYTES = 8
Kind = Literal["udp", "ipip"]
_labs = count(1)


@dataclass(slots=True)
class Node:
    """One end of the tunnel; `proxy` only between `start` and `stop`."""

    number: int
    namespace: Namespace
    pod: Namespace
    undo: ExitStack
    proxy: Proxy | None = None
    gone: list[str] = field(default_factory=list)

    @property
    def address(self) -> IPv4Address:
        return IPv4Address("198.18.0.0") + self.number

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(f"10.244.{self.number}.0/24")

    @property
    def pod_address(self) -> IPv4Address:
        return self.subnet[2]

    def pod_frames(self) -> Capture:
        """Return a new capture on our side of the pod's veth."""
        return Capture(self.namespace, "pod0")

    @property
    def running(self) -> Proxy:
        assert self.proxy is not None
        return self.proxy

    def peer(self) -> Peer:
        return Peer(self.subnet, self.address, Via.UDP)

    def hold(self) -> Tun:
        """Hold the TUN device, made if need be, with its address and routes."""
        tun = self.namespace.call(lambda: Tun(DEVICE))
        self.undo.callback(tun.close)
        return tun

    def set_up_device(self, *, mtu: int = 1472) -> None:
        self.namespace.ip(
            f"address replace {self.subnet[0]}/32 dev {DEVICE}",
            f"link set {DEVICE} mtu {mtu} up",
            f"route replace {NETWORK} dev {DEVICE}",
            f"link set pod0 mtu {mtu}",
        )
        self.pod.ip(f"link set eth0 mtu {mtu}")

    def carrier(self, kind: Kind, *, merge: bool = False) -> UdpCarrier | IpipCarrier:
        make: Callable[[], UdpCarrier | IpipCarrier] = (
            (lambda: IpipCarrier(self.address))
            if kind == "ipip"
            else (lambda: UdpCarrier(self.address, merge=merge))
        )
        made = self.namespace.call(make)
        self.undo.callback(made.close)
        return made

    def start(
        self,
        *peers: Peer,
        kind: Kind = "udp",
        merge: bool = False,
        check: SpoofCheck = SpoofCheck.DROP,
        mtu: int = 1472,
    ) -> Proxy:
        """Hold the device and pump."""
        tun = self.hold()
        self.set_up_device(mtu=mtu)
        return self.pump(tun, self.carrier(kind, merge=merge), *peers, check=check)

    def pump(
        self, tun: Tun, carrier: Carrier, *peers: Peer, check: SpoofCheck = SpoofCheck.DROP
    ) -> Proxy:
        """Pump between what is there already."""
        self.proxy = self.namespace.call(
            lambda: Proxy(
                tun,
                carrier,
                table=NodeTable.of(peers, network=NETWORK),
                address=self.subnet[0],
                hops=0 if isinstance(carrier, IpipCarrier) else 1,
                check=check,
                on_gone=lambda: self.gone.append(DEVICE),
            )
        )
        return self.undo.enter_context(self.proxy)

    def stop(self) -> None:
        """Let go of everything, as the end of a process would; the device stays."""
        self.undo.close()
        self.proxy = None


@contextmanager
def open_nodes(*, uplink_mtu: int = 1500) -> Iterator[tuple[Node, Node]]:
    """Give two nodes with pods, uplinks and forwarding, but no device and no proxy yet."""
    number = next(_labs)
    with ExitStack() as undo:
        first, second = (_make(undo, f"px{number}", end) for end in (1, 2))
        first.namespace.ip(
            f"link add eth0 mtu {uplink_mtu} type veth"
            f" peer name eth0 mtu {uplink_mtu} netns {second.namespace.name}"
        )
        for node in (first, second):
            node.namespace.ip(f"address add {node.address}/24 dev eth0", "link set eth0 up")
        yield first, second


def _make(undo: ExitStack, lab: str, number: int) -> Node:
    namespace = undo.enter_context(Namespace(f"{lab}-node{number}"))
    pod = undo.enter_context(Namespace(f"{lab}-pod{number}"))
    node = Node(number, namespace, pod, undo.enter_context(ExitStack()))
    namespace.sysctl("net.ipv4.ip_forward", 1)
    namespace.ip(
        f"link add pod0 type veth peer name eth0 netns {pod.name}",
        f"address add {node.subnet[1]}/32 dev pod0",
        "link set pod0 up",
        f"route add {node.pod_address} dev pod0",
    )
    pod.ip(
        f"address add {node.pod_address}/32 dev eth0",
        "link set eth0 up",
        f"route add {node.subnet[1]} dev eth0",
        f"route add default via {node.subnet[1]}",
    )
    return node


def udp_socket(namespace: Namespace, port: int = 0) -> socket.socket:
    made = namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.settimeout(5)
    made.bind(("", port))
    return made


def send_all(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def transfer(source: Node, destination: Node) -> None:
    """Send megabytes through one TCP connection and compare their hash at the far end."""
    data = bytes(range(251)) * (MEGABYTES * (1 << 20) // 251)
    with (
        destination.pod.call(lambda: socket.create_server(("", 5001))) as server,
        source.pod.call(
            lambda: socket.create_connection((str(destination.pod_address), 5001), 5)
        ) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(20)
            client.settimeout(20)
            sender = threading.Thread(target=send_all, args=(client, data))
            sender.start()
            found = sha256()
            while part := accepted.recv(1 << 20):
                found.update(part)
            sender.join()
    assert found.hexdigest() == sha256(data).hexdigest()
