"""One testbed of the two: its pods' wires, its settings, its counters.

Frames are sent and read raw at the pods' own interfaces; the pods' stacks are kept silent, so all
that moves was sent by a test or made by a node. `sync` returns once what was sent before has been
through both nodes: it sends a marker after it, there and back, on the longest way that there is.
"""

import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fast_view import fast_path_of
from kersey_loader.datapath import Count
from kersey_loader.layout import Config, Program, Verdict
from packets import checksum, ipv4, mac
from testbed import Cluster, Node, Pod, wait_until

from oracle.offload import Offload
from oracle.shots import CLIENT, MTU, SERVER, End, Flow, Shot

_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_RCVBUFFORCE = 33  # missing from the socket module
_RECEIVE_BUFFER = 8 << 20
_MARKER_PROTOCOL = 253  # RFC 3692: for experiments
_SILENCE = (
    "table ip silent {"
    " chain in { type filter hook prerouting priority -450; drop; };"
    " chain out { type filter hook output priority -450; drop; }; }"
)
_SETTINGS = {
    # What the daemon sets for the fast path, and says so: the one setting in which both would
    # differ.
    "net.netfilter.nf_conntrack_tcp_be_liberal": 1,
    # Which ICMP errors are left out for being too many depends on time: leave none out.
    "net.ipv4.icmp_ratemask": 0,
    "net.ipv4.icmp_ratelimit": 0,
    # The error about a fragment that stays alone would come into a later test.
    "net.ipv4.ipfrag_time": 3600,
}
WIDE = 1700
"""The pods' MTU in bytes: more than the overlay takes, so that there is something to refuse."""

_WAYS = ("ingress", "egress")
_ICMP = 1
_ICMP_ECHO_REPLY = 0
_ICMP_QUOTING = {3, 5, 11, 12}
_GATEWAY, _PODS = 1, {2, 3}
"""The last bytes of addresses in a pod subnet."""

Arrivals = dict[int, list[str]]
"""Frames by the number of the shot that they come of, as text; 0 for those of no shot."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A raw socket at a pod's interface."""

    pod: Pod
    socket: socket.socket
    address: bytes

    def send(self, frame: bytes, offload: Offload) -> None:
        """Send a frame as a stack would that leaves `offload` to the device."""
        self.socket.send(offload.header + frame)

    def read(self) -> Iterator[bytes]:
        """Yield every frame that is there, as it would be on a cable."""
        while True:
            try:
                data = self.socket.recv(1 << 17)
            except BlockingIOError:
                return
            offload, frame = Offload.split(data)
            yield from offload.done(frame)


class Side:
    """A testbed of two nodes with two pods each, prepared for the oracle."""

    def __init__(self, cluster: Cluster, *datapath: str) -> None:
        self.cluster = cluster
        self._datapath = datapath
        self._stack = ExitStack()
        self._arrivals: Arrivals = defaultdict(list)
        self._marker = 0
        self._marks: set[tuple[str, int]] = set()
        self._names = {mac(f"0e:00:0a:f4:00:{n.index:02x}"): f"{n.name}.cni0" for n in self.nodes}
        for node in self.nodes:
            self._prepare(node)
        self._wires = [self._open(pod) for pod in cluster.pods]
        for node in self.nodes:
            # Set by hand it stays; otherwise a bridge follows its ports, and one has one more.
            node.namespace.ip(f"link set cni0 mtu {MTU}")

    def close(self) -> None:
        """Close the sockets."""
        self._stack.close()

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    def restart_daemons(self, *options: str) -> None:
        """Restart the daemons with the datapath that they had and other `options`."""
        for node in self.nodes:
            node.daemon.restart(*self._datapath, *options)
        for node in self.nodes:
            node.daemon.wait_ready()

    def _prepare(self, node: Node) -> None:
        for name, value in _SETTINGS.items():
            node.namespace.sysctl(name, value)

    def _open(self, pod: Pod) -> Wire:
        pod.node.namespace.ip(f"link set {pod.port} mtu {WIDE}")
        pod.namespace.ip(f"link set eth0 mtu {WIDE}")
        pod.namespace.run("nft", _SILENCE)
        opened = self._stack.enter_context(pod.namespace.call(_packet_socket))
        address = opened.getsockname()[4]
        self._names[address] = pod.name
        return Wire(pod, opened, address)

    def _wire(self, end: End, *, neighbour: bool = False) -> Wire:
        return self._wires[2 * (end.value - 1) + neighbour]

    def _gateway(self, end: End) -> bytes:
        return mac(f"0e:00:0a:f4:00:{end.value:02x}")

    def send(self, number: int, shot: Shot, flow: Flow) -> None:
        """Send one shot."""
        wire = self._wire(shot.sender, neighbour=shot.foreign_port)
        beside = self._wire(shot.sender, neighbour=not shot.foreign_port)
        destination = beside.address if shot.to_neighbour else self._gateway(shot.sender)
        frame = shot.frame(number, flow, source=wire.address, destination=destination)
        wire.send(frame, shot.offload(frame))

    def sync(self) -> None:
        """Return once everything that was sent before has arrived, or will not."""
        self._marker += 1
        for sender, receiver in ((CLIENT, SERVER), (SERVER, CLIENT)):
            self._mark(sender, receiver)

    def _mark(self, sender: End, receiver: End) -> None:
        packet = ipv4(
            struct.pack("!Q", self._marker),
            src=str(sender.address),
            dst=str(receiver.address),
            protocol=_MARKER_PROTOCOL,
            ident=0,
        )
        wire = self._wire(sender)
        frame = self._gateway(sender) + wire.address + b"\x08\x00" + packet
        wire.send(frame, Offload(linear=len(frame)))
        goal = (self._wire(receiver).pod.name, self._marker)
        wait_until(lambda: self._has_seen(*goal), timeout=5, what="marker")

    def _has_seen(self, pod: str, marker: int) -> bool:
        self._collect()
        return (pod, marker) in self._marks

    def _collect(self) -> None:
        for wire in self._wires:
            for frame in wire.read():
                self._note(wire.pod.name, frame)

    def _note(self, pod: str, frame: bytes) -> None:
        if frame[12:14] != b"\x08\x00" or frame[0] & 1:
            return  # ARP, or the bridge's own multicast
        if frame[23] == _MARKER_PROTOCOL:
            self._marks.add((pod, struct.unpack_from("!Q", frame, 34)[0]))
            return
        number, packet = _attribute(frame[14:])
        to, by = (self._names.get(frame[at : at + 6], "stranger") for at in (0, 6))
        self._arrivals[number].append(f"at {pod} to {to} from {by}: {packet.hex()}")

    def arrivals(self) -> Arrivals:
        """Return all that arrived since the last `forget`, in an order of its own."""
        self._collect()
        return {number: sorted(frames) for number, frames in self._arrivals.items()}

    def forget(self) -> None:
        """Begin a new account."""
        self._arrivals.clear()


class FastSide(Side):
    """The testbed with programs; what they counted."""

    def __init__(self, cluster: Cluster, *datapath: str) -> None:
        super().__init__(cluster, *datapath)
        self._paths = [self._stack.enter_context(fast_path_of(node)) for node in self.nodes]

    def fast(self, end: End) -> dict[Program, int]:
        """Return how many packets were fast at the node of `end` so far, sent and received."""
        counters = self._paths[end.value - 1].counters()
        return {
            program: counters[program, Verdict.FAST]
            for program in (Program.FROM_POD, Program.FROM_UPLINK)
        }

    def fast_sent(self, sender: End) -> Count:
        """Return what the node of `sender` has sent fast so far, segments as packets."""
        sent = [peer.fast_sent for peer in self._paths[sender.value - 1].traffic().values()]
        return Count(sum(each.packets for each in sent), sum(each.bytes for each in sent))

    def ports_served(self, end: End) -> int:
        """Return for how many pods of a node there is a fast path now."""
        return len(self._paths[end.value - 1].pod_ports())

    def generations(self) -> list[int]:
        """Return the nodes' generations: another one voids every admitted flow."""
        configs = [path.maps["cfg"].lookup(bytes(4)) for path in self._paths]
        return [Config.from_buffer_copy(config or b"").generation for config in configs]

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """Return once the daemons of both nodes have flushed for what is done meanwhile."""
        before = self.generations()
        yield
        wait_until(
            lambda: all(new != old for new, old in zip(self.generations(), before, strict=True)),
            timeout=5,
            what="daemons heard of the change",
        )


def programs_of(nodes: Iterable[Node]) -> list[str]:
    """Return what shows that `nodes` have programs: pins, and TC filters as `tc` names them."""
    devices = ("eth0", "flannel.1", "cni0", "veth1", "veth2")
    commands = [f"tc filter show dev {name} {way}" for name in devices for way in _WAYS]
    shown = [node.namespace.run(*each.split()).stdout for node in nodes for each in commands]
    pins = [str(pin) for node in nodes for pin in pins_of(node)]
    return [text for text in shown if text] + pins


def pins_of(node: Node) -> list[Path]:
    """Return what a node's daemon pinned; the file system has files of its own, `*.debug`."""
    return [path for path in node.bpf_dir.iterdir() if path.suffix != ".debug"]


def _packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    made.setblocking(False)
    made.bind(("eth0", _ETH_P_ALL))
    return made


def _attribute(packet: bytes) -> tuple[int, bytes]:
    """Return the number of the shot, and the packet with what only the kernel chose taken out.

    That is the identification of packets which a node itself made, by its own counters. An error
    about a translated packet has the service's address for its source.
    """
    number, header = int.from_bytes(packet[4:6]), (packet[0] & 0xF) * 4
    host = packet[15]
    if host in _PODS:
        return number, packet
    if packet[9] == _ICMP and packet[header] in _ICMP_QUOTING:
        quoted = packet[header + 8 :]
        return int.from_bytes(quoted[4:6]), _without_id(packet, header)
    if host == _GATEWAY or (packet[9] == _ICMP and packet[header] == _ICMP_ECHO_REPLY):
        return 0, _without_id(packet, header)
    return number, packet


def _without_id(packet: bytes, header: int) -> bytes:
    assert checksum(packet[:header]) == 0
    return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
