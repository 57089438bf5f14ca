"""Which way one packet between two addresses takes on this node, step by step, and why.

Asks the kernel's routing decision, neighbours and forwarding entries, the rules, and the programs'
maps. Sends nothing, and does not judge chains that rules jump to: it says so.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from kersey_loader.errors import LoaderError
from kersey_loader.layout import Admission
from kersey_loader.view import View, ViewedFlow

from kersey_control.addresses import gateway_of
from kersey_control.doctor import rules, system
from kersey_control.doctor.finding import Severity
from kersey_control.doctor.host import Host
from kersey_control.errors import KerseyError, UnavailableError
from kersey_control.node_view import NodeView, read_peers
from kersey_control.pod_place import PodPlace, find_pod
from kersey_control.route_lookup import Way, device_name, look_up, open_lookup
from kersey_control.told import ToldPeer

_TRACKED = frozenset({6, 17})


class Kind(StrEnum):
    """What an address is, as seen from this node."""

    OWN_POD = "a pod of this node"
    NODE = "this node itself"
    PEER_POD = "a pod of another node"
    PEER_NODE = "another node"
    UNLEASED = "in the pod network, but of no lease"
    OUTSIDE = "outside of the pod network"


@dataclass(frozen=True, slots=True)
class Spot:
    """One end of the way: its address, what that is, and the peer that it belongs to."""

    address: IPv4Address
    kind: Kind
    peer: ToldPeer | None = None

    def __str__(self) -> str:
        return f"{self.address} is {self.kind}" + (f", {self.peer.node}" if self.peer else "")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was asked, and the answer. `ok` is None where it decides nothing."""

    name: str
    says: str
    ok: bool | None = True


@dataclass(frozen=True, slots=True)
class Packet:
    """What is traced; None is any."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int | None = None
    port: int | None = None


def spot_of(
    address: IPv4Address,
    *,
    network: IPv4Network | None,
    subnet: IPv4Network | None,
    own: frozenset[IPv4Address],
    peers: list[ToldPeer],
) -> Spot:
    """Return what an address is; `own` are this node's own addresses."""
    if address in own:
        return Spot(address, Kind.NODE)
    if subnet is not None and address in subnet:
        return Spot(address, Kind.OWN_POD)
    for peer in peers:
        if address in IPv4Network(peer.subnet):
            return Spot(address, Kind.PEER_POD, peer)
        if str(address) == peer.node:
            return Spot(address, Kind.PEER_NODE, peer)
    inside = network is not None and address in network
    return Spot(address, Kind.UNLEASED if inside else Kind.OUTSIDE)


def conclude(steps: list[Step], flows: list[ViewedFlow]) -> Step:
    """Return what all steps come to."""
    broken = next((step for step in steps if step.ok is False), None)
    if broken is not None:
        return Step("verdict", f"does not arrive: {broken.name}: {broken.says}", ok=False)
    if any(flow.is_fast for flow in flows):
        return Step("verdict", "by the fast path")
    can_be_fast = any(step.name == "fast path" and step.ok for step in steps)
    later = ", and fast once both directions were seen to cross it" if can_be_fast else ""
    return Step("verdict", f"by the kernel's own path{later}")


def trace(packet: Packet, view: NodeView, host: Host) -> list[Step]:
    """Return all steps of a packet's way through this node, the conclusion last.

    Raises KerseyError where nothing can be said, KernelError.
    """
    return _Tracer(view, host, packet).run()


class _Tracer:
    """One trace; keeps what several steps need."""

    def __init__(self, view: NodeView, host: Host, packet: Packet) -> None:
        self._view = view
        self._host = host
        self._packet = packet
        self._netlink: Any = None
        self._peers = read_peers(view)

    def run(self) -> list[Step]:
        """Return all steps."""
        with open_lookup() as self._netlink:
            source, destination = self._spots()
            steps = [Step("from", str(source), ok=None), Step("to", str(destination), ok=None)]
            steps += self._steps(source, destination)
            flows: list[ViewedFlow] = []
            if Kind.PEER_POD in (source.kind, destination.kind):
                flows = list(self._flows())
                steps += self._programs(source, destination)
                steps += self._shown(flows)
        return [*steps, conclude(steps, flows)]

    def _spots(self) -> tuple[Spot, Spot]:
        own = frozenset(
            address.ip
            for device in self._host.devices
            for address in self._host.addresses(device.ifindex)
        )
        network, subnet = self._view.network, self._view.subnet
        source, destination = (
            spot_of(address, network=network, subnet=subnet, own=own, peers=self._peers)
            for address in (self._packet.source, self._packet.destination)
        )
        here = {Kind.OWN_POD, Kind.NODE}
        if source.kind not in here and destination.kind not in here:
            other = source.peer or destination.peer
            where = f"on node {other.node}" if other else "on the node of one of them"
            raise KerseyError(
                f"neither {source.address} nor {destination.address} is on this node;"
                f" run kersey trace {where}"
            )
        return source, destination

    def _steps(self, source: Spot, destination: Spot) -> Iterator[Step]:
        incoming = yield from self._entry(source)
        is_forwarded = Kind.NODE not in (source.kind, destination.kind)
        if is_forwarded:
            yield from self._forwarding(incoming)
        way = self._way(source, incoming)
        yield self._judge_way(way, destination)
        if way.is_refused:
            return
        if is_forwarded:
            yield from self._rules()
        if destination.kind is Kind.OWN_POD:
            yield self._pod("delivery", destination.address)
        if destination.peer is not None and destination.kind is Kind.PEER_POD:
            yield from self._tunnel(destination.peer)
        if destination.kind is Kind.OUTSIDE and source.kind is Kind.OWN_POD:
            yield self._masquerade()

    def _entry(self, source: Spot) -> Generator[Step, None, int]:
        """Yield how the packet gets into this node; return the ifindex, 0 for our own."""
        if source.kind is Kind.OWN_POD:
            place = find_pod(self._netlink, source.address)
            yield self._pod("pod", source.address)
            return place.device if place else 0
        if source.kind is Kind.PEER_POD and source.peer is not None:
            yield self._sender(source.peer)
            return self._arrival(source.peer)
        if source.kind is Kind.NODE:
            return 0
        uplink = self._host.device(self._view.uplink)
        return uplink.ifindex if uplink else 0

    def _arrival(self, peer: ToldPeer) -> int:
        if peer.via != "direct" and self._view.overlay is not None:
            return self._view.overlay.ifindex
        uplink = self._host.device(self._view.uplink)
        return uplink.ifindex if uplink else 0

    def _pod(self, name: str, address: IPv4Address) -> Step:
        place = find_pod(self._netlink, address)
        if place is None:
            return Step(name, f"no local device leads to {address}", ok=False)
        return _pod_step(name, address, place)

    def _sender(self, peer: ToldPeer) -> Step:
        try:
            with self._view.open_pins() as pins:
                known = IPv4Address(peer.node) in pins.senders()
        except (UnavailableError, LoaderError) as error:
            return Step("sender check", f"none: {error}", ok=None)
        says = f"node {peer.node} {'may' if known else 'is unknown, so it may not'} send for"
        return Step("sender check", f"{says} {peer.subnet}", ok=known)

    def _way(self, source: Spot, incoming: int) -> Way:
        if source.kind is Kind.NODE or not incoming:
            return look_up(self._netlink, self._packet.destination)
        return look_up(
            self._netlink, self._packet.destination, source=source.address, incoming=incoming
        )

    def _judge_way(self, way: Way, destination: Spot) -> Step:
        if way.is_refused:
            return Step("route", f"the kernel refuses: {way.kind}", ok=False)
        peer = destination.peer
        if destination.kind is Kind.UNLEASED:
            says = f"{way}; no node has a lease for this address (kersey peers)"
            return Step("route", says, ok=False)
        if destination.kind is not Kind.PEER_POD or peer is None:
            return Step("route", f"{way}" if way.kind == "unicast" else f"{way.kind}, {way}")
        wanted = self._wanted_device(peer)
        if way.device != wanted:
            says = f"{way}, expected dev {wanted}: a route or policy rule of somebody else's"
            return Step("route", f"{says} takes it (ip route get, ip rule)", ok=False)
        return Step("route", f"{way}")

    def _wanted_device(self, peer: ToldPeer) -> str:
        if peer.via == "direct" or self._view.overlay is None:
            return look_up(self._netlink, IPv4Address(peer.node)).device
        return self._view.overlay.name

    def _forwarding(self, incoming: int) -> Iterator[Step]:
        name = device_name(incoming)
        flags = {name: self._host.sysctl(f"net/ipv4/conf/{name}/forwarding") != "0"}
        whole = self._host.sysctl("net/ipv4/ip_forward") != "0"
        faults = list(system.judge_forwarding(whole=whole, devices=flags if name else {}))
        if faults:
            yield Step("forwarding", f"{faults[0].what} ({faults[0].cure})", ok=False)
        else:
            yield Step("forwarding", f"on{f' for {name}' if name else ''}")

    def _rules(self) -> Iterator[Step]:
        faults = list(rules.check(self._host, self._view))
        for fault in faults:
            ok = False if fault.severity is Severity.ERROR else None
            yield Step("rules", f"{fault.what} ({fault.cure})", ok=ok)
        if not faults:
            yield Step("rules", "none is known to stop it; chains jumped to are not judged")

    def _tunnel(self, peer: ToldPeer) -> Iterator[Step]:
        if peer.condition != "programmed":
            yield Step("peer", f"{peer.subnet} is {peer.condition}: {peer.reason}", ok=False)
            return
        node = IPv4Address(peer.node)
        if peer.via == "direct":
            yield Step("peer", f"{peer.subnet} is at {node}, as it is, without a tunnel")
        else:
            mac = f", {gateway_of(IPv4Network(peer.subnet))} is at {peer.mac}" if peer.mac else ""
            yield Step("peer", f"{peer.subnet} is behind {node} by {peer.via}{mac}")
        way = look_up(self._netlink, node)
        size = self._view.overhead if peer.via != "direct" else 0
        says = f"{way}, {size} bytes of tunnel in front" if size else f"{way}"
        yield Step("underlay", says if not way.is_refused else way.kind, ok=not way.is_refused)

    def _masquerade(self) -> Step:
        env = self._view.env
        if env is None:
            return Step("masquerade", "unknown, as there is no subnet.env", ok=None)
        if env.masquerade:
            return Step("masquerade", "it leaves with this node's address")
        says = "off: it leaves with the pod's own address, which others must know the way back to"
        return Step("masquerade", says, ok=None)

    def _programs(self, source: Spot, destination: Spot) -> Iterator[Step]:
        """Yield whether the fast path can have this packet, when it is admitted."""
        name = "fast path"
        if self._packet.protocol not in (None, *_TRACKED):
            yield Step(name, "never: only TCP and UDP are", ok=None)
            return
        if Kind.OWN_POD not in (source.kind, destination.kind):
            yield Step(name, "never: it is for pods, and one end is this node itself", ok=None)
            return
        try:
            with self._view.open_pins() as pins:
                yield self._in_maps(pins, source, destination)
        except (UnavailableError, LoaderError) as error:
            yield Step(name, f"none: {error}", ok=None)

    def _in_maps(self, pins: View, source: Spot, destination: Spot) -> Step:
        name = "fast path"
        own, other = (source, destination) if source.kind is Kind.OWN_POD else (destination, source)
        config = pins.config
        if config is None or config.admission is Admission.OFF:
            return Step(name, "off (--admission=off)", ok=None)
        if other.peer is None or IPv4Network(other.peer.subnet) not in pins.peers():
            return Step(name, f"the programs do not know {other.address}'s node", ok=None)
        place = find_pod(self._netlink, own.address)
        if place is not None and place.port and place.port not in pins.pod_ports():
            return Step(name, f"{device_name(place.port)} is no pod port of the programs", ok=None)
        return Step(name, f"possible, admission {config.admission.name.lower()}")

    def _flows(self) -> Iterator[ViewedFlow]:
        try:
            with self._view.open_pins() as pins:
                yield from (flow for flow in pins.flows() if fits(flow, self._packet))
        except (UnavailableError, LoaderError):
            return  # the step on the fast path says so

    def _shown(self, flows: list[ViewedFlow]) -> Iterator[Step]:
        if not flows:
            yield Step("flows", "none between the two has been seen", ok=None)
            return
        fast = [flow for flow in flows if flow.is_fast]
        why = sorted(
            {flow.verdict.name.lower().replace("_", " ") for flow in flows if not flow.is_fast}
        )
        rest = f"; the others: {', '.join(why)} (kersey flows)" if why else ""
        yield Step("flows", f"{len(fast)} of {len(flows)} fast{rest}", ok=None)


def fits(flow: ViewedFlow, packet: Packet) -> bool:
    """Return whether a packet belongs to a flow; its `port` is the destination's."""
    out = (flow.local, flow.remote) == (packet.source, packet.destination)
    back = (flow.remote, flow.local) == (packet.source, packet.destination)
    port = flow.remote_port if out else flow.local_port
    return (
        (out or back) and packet.port in (None, port) and packet.protocol in (None, flow.protocol)
    )


def _pod_step(name: str, address: IPv4Address, place: PodPlace) -> Step:
    return Step(name, f"{address} {place}", ok=True if place.mac else None)
