"""Two nodes with a bridge, a pod and the slow path of some backend each, and our programs on them.

The slow path is complete by itself: the kernel's VXLAN device, plain routes, or a TUN device with a
proxy behind it. No daemon: tests call the datapath themselves.
"""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path
from typing import Self

from bpf_lab import kept_programs, private_bpffs
from kersey_loader.attach import Attachment
from kersey_loader.datapath import Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.layout import Admission, Program, Verdict
from kersey_loader.tcx import remove_link
from kersey_loader.tunnel import Tunnel, VxlanTunnel
from packets import mac
from testbed.namespace import Namespace
from tun_proxy import Proxy, open_tun
from wires import IPIP_WIRE, NO_WIRE, UDP_WIRE, VXLAN_WIRE, Wire

NETWORK = IPv4Network("10.244.0.0/16")
PORT = 5001
PATIENCE = 5.0
"""Seconds in which anything on this machine must have happened."""

_RECVTTL = 12  # not in the socket module before Python 3.14
_numbers = count(1)


@dataclass(frozen=True)
class Backend:
    """How the peers reach each other; `direct` without the tunnel that there is."""

    name: str
    wire: Wire
    direct: bool = False

    @property
    def mtu(self) -> int:
        """Return the pods' MTU in bytes."""
        return 1500 - self.wire.room

    @property
    def has_proxy(self) -> bool:
        """Return whether its slow path is a TUN device."""
        return self.wire in (UDP_WIRE, IPIP_WIRE)


VXLAN = Backend("vxlan", VXLAN_WIRE)
DIRECT_ROUTING = Backend("vxlan-direct", VXLAN_WIRE, direct=True)
UDP = Backend("udp", UDP_WIRE)
IPIP = Backend("ipip", IPIP_WIRE)
HOST_GW = Backend("host-gw", NO_WIRE, direct=True)


class Side:
    """One node and its pod. `number` is 1 or 2; the other one is the peer."""

    def __init__(self, number: int, *, node: Namespace, pod: Namespace, backend: Backend) -> None:
        self.number, self.other = number, 3 - number
        self.node, self.pod = node, pod
        self.backend = backend
        self.address = f"10.244.{number}.10"
        self.datapath: Datapath | None = None
        self.proxy: Proxy | None = None
        self.tun = -1

    def build(self, stack: ExitStack) -> None:
        """Make the devices, addresses and routes of flannel's own slow path."""
        n = self.number
        self.node.sysctl("net.ipv4.ip_forward", 1)
        self.node.ip(
            f"addr add 198.18.0.{n}/24 dev wire",
            "link set wire up",
            f"link add cni0 mtu {self.backend.mtu} type bridge",
            f"addr add 10.244.{n}.1/24 dev cni0",
            "link set cni0 up",
        )
        if self.backend.wire is VXLAN_WIRE:
            self._add_vxlan()
        elif self.backend.has_proxy:
            self._add_proxy(stack)
        if self.backend.direct:
            self.node.ip(f"route replace {self.their_subnet} via {self.their_node} dev wire")
        self.plug(self.pod, port="pod0")

    @property
    def their_subnet(self) -> IPv4Network:
        return IPv4Network(f"10.244.{self.other}.0/24")

    @property
    def their_node(self) -> str:
        return f"198.18.0.{self.other}"

    def _add_vxlan(self) -> None:
        n, m = self.number, self.other
        self.node.ip(
            f"link add flannel.1 address 0e:00:00:00:00:0{n} mtu 1450 type vxlan id 1 dev wire "
            f"local 198.18.0.{n} dstport 8472 nolearning noudpcsum",
            f"addr add 10.244.{n}.0/32 dev flannel.1",
            "link set flannel.1 up",
            f"neigh add 10.244.{m}.0 lladdr 0e:00:00:00:00:0{m} dev flannel.1 nud permanent",
            f"route add 10.244.{m}.0/24 via 10.244.{m}.0 dev flannel.1 onlink",
        )
        self.node.run(*f"bridge fdb add 0e:00:00:00:00:0{m} dst 198.18.0.{m} dev flannel.1".split())

    def _add_proxy(self, stack: ExitStack) -> None:
        self.tun = tun = self.node.call(lambda: open_tun("flannel0"))
        stack.callback(os.close, tun)
        self.node.ip(
            f"link set flannel0 mtu {self.backend.mtu} up",
            f"addr add 10.244.{self.number}.0/32 dev flannel0",
            f"route add {NETWORK} dev flannel0",
        )
        self.proxy = Proxy(
            self.backend.wire,
            namespace=self.node,
            tun=tun,
            address=f"198.18.0.{self.number}",
            peers={self.their_subnet: self.their_node},
        )
        stack.enter_context(self.proxy)

    def plug(self, pod: Namespace, *, port: str) -> None:
        """Give a pod this side's pod address, as a CNI plugin would."""
        mtu = self.backend.mtu
        self.node.ip(
            f"link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod.name}",
            f"link set {port} master cni0",
            f"link set {port} up",
        )
        pod.ip(
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via 10.244.{self.number}.1",
        )
        self.pod = pod

    def ifindex(self, device: str) -> int:
        """Return the index of one of the node's devices."""
        return self.node.call(lambda: socket.if_nametoindex(device))

    def start(self, settings: Settings, *, admission: Admission, max_age: float) -> Datapath:
        """Load, configure and attach everything."""
        self.directory = settings.directory
        self.datapath = datapath = self.node.call(lambda: load(settings))
        datapath.configure(self.config(admission=admission, max_age=max_age))
        self.put_peer(direct=self.backend.direct)
        self.attach()
        return datapath

    def config(
        self, *, admission: Admission = Admission.STRICT, max_age: float = 5.0
    ) -> DatapathConfig:
        """Return how this node takes part."""
        return DatapathConfig(
            uplink=self.ifindex("wire"),
            node=IPv4Address(f"198.18.0.{self.number}"),
            subnet=IPv4Network(f"10.244.{self.number}.0/24"),
            tunnel=self._tunnel(),
            carrier=self.ifindex("flannel0") if self.backend.has_proxy else 0,
            mtu=self.backend.mtu,
            pod_mtu=self.backend.mtu,
            admission=admission,
            max_age=max_age,
        )

    def put_peer(self, *, direct: bool) -> None:
        """Tell the datapath of the other node."""
        peer = PeerEntry(
            self.their_subnet,
            IPv4Address(self.their_node),
            mac(f"0e:00:00:00:00:0{self.other}"),
            direct=direct,
        )
        self.loaded().put_peer(peer)

    def _tunnel(self) -> Tunnel | None:
        if self.backend.wire is VXLAN_WIRE:
            return VxlanTunnel(vni=1, port=8472, mac=mac(f"0e:00:00:00:00:0{self.number}"))
        return self.backend.wire.tunnel

    def attach(self) -> None:
        """Attach, or replace, all programs."""
        datapath, backend = self.loaded(), self.backend
        wire, pod_port = map(self.ifindex, ("wire", "pod0"))
        # Links and device maps take ifindexes of the calling thread's namespace.
        self.node.call(lambda: datapath.attach_uplink(wire, direct=backend.direct))
        if backend.wire is not NO_WIRE:
            overlay = self.ifindex("flannel0" if backend.has_proxy else "flannel.1")
            self.node.call(lambda: datapath.attach_overlay(overlay))
        self.node.call(lambda: datapath.put_pod_port(pod_port))

    def detach(self) -> tuple[Attachment, ...]:
        """Take every program off by hand, as an operator would; returns what was on.

        An operator on a kernel without TCX removes the filters, not clsact: adding or removing that
        makes the kernel stop the device's queues for a moment (dev_deactivate), which loses packets
        even where no program ever was.
        """
        found = self.loaded().attachments()
        for path in (self.directory / "links").iterdir():
            remove_link(path)
        return found

    def loaded(self) -> Datapath:
        """Return the datapath, which must have been started."""
        assert self.datapath is not None
        return self.datapath

    def counted(self, program: Program, verdict: Verdict) -> int:
        """Return a counter."""
        return self.loaded().counters()[program, verdict]


class Pair:
    """Both sides, wired to each other."""

    def __init__(self, sides: tuple[Side, Side], scratch: Path, stack: ExitStack) -> None:
        self.near, self.far = sides
        self._scratch = scratch
        self._stack = stack

    def start(self, *, admission: Admission = Admission.STRICT, max_age: float = 5.0) -> None:
        """Start the fast path on both nodes."""
        for side in (self.near, self.far):
            directory = self._scratch / f"node{side.number}"
            self._stack.enter_context(private_bpffs(directory))
            kind = side.backend.wire.kind
            settings = Settings(
                directory, network=NETWORK, subnet_len=24, tunnel=kind, cache=kept_programs()
            )
            datapath = side.start(settings, admission=admission, max_age=max_age)
            self._stack.enter_context(datapath)

    def namespace(self, name: str) -> Namespace:
        """Make one more namespace, for another pod."""
        return self._stack.enter_context(Namespace(name))


@contextmanager
def open_pair(scratch: Path, backend: Backend = VXLAN) -> Iterator[Pair]:
    """Build two nodes without any program of ours."""
    prefix = f"kp{next(_numbers)}"
    with ExitStack() as stack:
        sides = [
            Side(
                number,
                node=stack.enter_context(Namespace(f"{prefix}-node{number}")),
                pod=stack.enter_context(Namespace(f"{prefix}-pod{number}")),
                backend=backend,
            )
            for number in (1, 2)
        ]
        sides[0].node.ip(f"link add wire type veth peer name wire netns {sides[1].node.name}")
        for side in sides:
            side.build(stack)
        yield Pair((sides[0], sides[1]), scratch, stack)


class Echo:
    """A UDP echo in a namespace; remembers TTL and TOS of what it got. A context manager."""

    def __init__(self, namespace: Namespace, address: str) -> None:
        self._socket = namespace.call(lambda: _bound(address))
        self.seen: list[tuple[bytes, int, int]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        # Closing alone would not wake the thread.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                data, extra, _, peer = self._socket.recvmsg(2048, 256)
                if not extra:
                    return
                facts = {kind: int.from_bytes(value[:1], "little") for _, kind, value in extra}
                self.seen.append((data, facts[socket.IP_TTL], facts[socket.IP_TOS]))
                self._socket.sendto(data, peer)
            except OSError:
                return


def _bound(address: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IP, _RECVTTL, 1)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    opened.bind((address, PORT))
    return opened


def client(namespace: Namespace, address: str, *, source_port: int = 0) -> socket.socket:
    """Return a connected UDP socket in a namespace that gives up after a while."""

    def connect() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("0.0.0.0", source_port))  # noqa: S104  # inside a pod
        opened.settimeout(PATIENCE)
        opened.connect((address, PORT))
        return opened

    return namespace.call(connect)


def ask(opened: socket.socket, data: bytes) -> bytes:
    """Send one datagram and return the answer."""
    opened.send(data)
    return opened.recv(2048)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fails after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.01)


def stream(
    source: Namespace, sink: Namespace, *, address: str, size: int, asked: str | None = None
) -> bool:
    """Send `size` bytes over TCP and return whether the same bytes arrived.

    `asked` is the address to connect to, where that is another one than the sink's.
    """
    listener = sink.call(lambda: socket.create_server((address, PORT)))
    data = hashlib.shake_256(b"stream").digest(1 << 16) * (size >> 16)
    digest = hashlib.sha256()
    arrived = threading.Thread(target=_drain, args=(listener, digest.update), daemon=True)
    arrived.start()
    with (
        listener,
        source.call(lambda: socket.create_connection((asked or address, PORT))) as opened,
    ):
        opened.sendall(data)
        opened.shutdown(socket.SHUT_WR)
        arrived.join(timeout=20)
    return digest.digest() == hashlib.sha256(data).digest()


def _drain(listener: socket.socket, take: Callable[[bytes], object]) -> None:
    opened, _ = listener.accept()
    with opened:
        while data := opened.recv(1 << 16):
            take(data)


def exchange_while(pair: Pair, disturb: Callable[[], None]) -> None:
    """Exchange 3,000 datagrams one by one while `disturb` runs again and again."""
    over = threading.Event()
    failures: list[BaseException] = []

    def go_on() -> None:
        try:
            while not over.wait(0.02):
                disturb()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        ask(opened, b"first")
        disturber = threading.Thread(target=go_on)
        disturber.start()
        try:
            for number in range(3000):
                assert ask(opened, b"%d" % number) == b"%d" % number
        finally:
            over.set()
            disturber.join()
    assert not failures
