"""Whether peers can really be reached: their nodes, through the tunnel, with the largest packets.

Four pings and a datagram to each, all peers at once, and what the daemon's own probes know besides:
in which direction packets are lost. What the answers mean together is decided in pure code; a ping
alone proves little, since some networks drop them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import groupby

from kersey_control.addresses import gateway_of
from kersey_control.doctor.finding import Finding, error, listed, warning
from kersey_control.doctor.pings import Ping, answered_pings, refused_datagrams
from kersey_control.node_view import NodeView, read_peers
from kersey_control.reach import OneWay
from kersey_control.silence import PLAIN, cut, name_of
from kersey_control.told import ToldPeer, ToldSilent

_SMALL = 84
_LADDER = (576, 1280, 1330, 1360, 1380, 1400, 1410, 1420, 1430, 1440, 1450, 1460, 1472, 1480, 1492)
_LARGEST_LADDER = (1500, 1550, 2000, 4000, 8000, 8900, 8950, 9000)
_AT_ONCE = 64
_DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Reach:
    """What one peer answered. `tunnel` and `whole_tunnel` are None for a peer without a tunnel.

    `node` and `whole_node` are pings to the node itself, the second as large as a full tunnel
    packet; the others go to the node's address in the overlay. `path` is the largest packet to the
    node that was answered, 0 if that was not tried. `datagram` came back as refused.
    """

    subnet: str
    address: str
    node: bool
    whole_node: bool
    tunnel: bool | None = None
    whole_tunnel: bool | None = None
    datagram: bool | None = None
    path: int = 0
    one_way: OneWay | None = None
    """As the daemon's probes have it."""

    def __str__(self) -> str:
        return f"{self.address} ({self.subnet})"


@dataclass(frozen=True, slots=True)
class Wire:
    """What packets look like: pods' MTU, the tunnel's overhead, its UDP port (0 without one).

    `uplink`, `overlay` and `prefix` (of the store's keys) are for the commands that mend.
    """

    mtu: int
    overhead: int
    port: int
    uplink: str = "eth0"
    overlay: str = "flannel.1"
    prefix: str = "/coreos.com/network"

    @property
    def carrier(self) -> str:
        """Return what firewalls must let through."""
        return f"UDP port {self.port}" if self.port else "IP protocol 4"

    @property
    def whole(self) -> int:
        """Return the size of the largest packet on the wire."""
        return self.mtu + self.overhead


def check(view: NodeView) -> Iterator[Finding]:
    """Ask all peers."""
    peers = [peer for peer in read_peers(view) if peer.condition == "programmed"]
    mtu = view.told.mtu if view.told else view.overlay.mtu if view.overlay else 0
    if not peers or not mtu:
        return
    wire = Wire(mtu, view.overhead, view.port, view.uplink or "UPLINK", _overlay(view))
    if view.told is not None and view.told.options.etcd_prefix:
        wire = replace(wire, prefix=view.told.options.etcd_prefix)
    reaches: list[Reach] = []
    for start in range(0, len(peers), _AT_ONCE):
        reaches += _ask(peers[start : start + _AT_ONCE], wire)
    yield from judge(reaches, wire)


def check_told(view: NodeView) -> Iterator[Finding]:
    """Ask nobody but the daemon, whose probes go on all the time."""
    if view.told is not None:
        yield from judge_silent(view.told.peers.silent, view.told.tunnel)


def judge_silent(peers: Iterable[ToldSilent], tunnel: str) -> Iterator[Finding]:
    """Say which peers do not answer probes, and which do not in one direction."""
    found = list(peers)
    if quiet := [name_of(peer) for peer in found if peer.one_way is None]:
        yield error(
            f"no answer through the overlay from {listed(quiet)}",
            "its pods cannot be reached, or its kernel drops pings and probes",
            "sudo kersey doctor, which sends packets to find out more",
        )
    for way in OneWay:
        if names := [name_of(peer) for peer in found if peer.one_way is way]:
            yield _cut(way, names, tunnel or PLAIN)


def _overlay(view: NodeView) -> str:
    return view.overlay.name if view.overlay else ""


def judge(reaches: Iterable[Reach], wire: Wire) -> Iterator[Finding]:
    """Say what is wrong, once for all peers that it is wrong with."""
    faults = sorted((each for each in map(_fault, reaches) if each), key=lambda pair: pair[0])
    for kind, pairs in groupby(faults, key=lambda pair: pair[0]):
        found = [reach for _, reach in pairs]
        yield _FINDINGS[kind](found, wire)


def _fault(reach: Reach) -> tuple[str, Reach] | None:
    kind = next((name for name, applies in _faults(reach) if applies), None)
    return (kind, reach) if kind else None


def _faults(reach: Reach) -> Iterator[tuple[str, bool]]:
    """Yield each fault and whether a peer has it, the one that explains most first."""
    tunnelled = reach.tunnel is not None
    yield "lost out", reach.one_way is OneWay.OUT and not reach.tunnel
    yield "lost in", reach.one_way is OneWay.IN and not reach.tunnel
    yield "dead", not reach.node and not reach.tunnel
    yield "closed", tunnelled and not reach.tunnel
    yield "narrow", reach.node and not reach.whole_node
    yield "narrow tunnel", tunnelled and not reach.whole_tunnel
    yield "checksum", tunnelled and not reach.datagram


def _lost(found: list[Reach], wire: Wire) -> Finding:
    way = found[0].one_way or OneWay.OUT
    what = PLAIN if found[0].tunnel is None else wire.carrier
    return _cut(way, [str(each) for each in found], what)


def _cut(way: OneWay, names: list[str], what: str) -> Finding:
    where = "there" if way is OneWay.OUT else "here"
    return error(
        cut(way, listed(names), pronoun="it" if len(names) == 1 else "them"),
        f"{what} is closed in that direction, in a firewall of either node or between (security"
        " groups): no connection between pods opens",
        f"accept it {where}, where it should arrive, e.g. {_accept(what)}; look at output rules of"
        " the other node too, and at what is between",
    )


def _accept(carrier: str) -> str:
    """Return the command that lets a tunnel, or packets of pods, through."""
    match carrier.split(" "):
        case "UDP", "port", number:
            return f"nft insert rule inet filter input udp dport {number} accept"
        case "IP", "protocol", number:
            return f"nft insert rule inet filter input ip protocol {number} accept"
        case _:
            return "rules of the forward chain that name the pod network, and source checks"


def _dead(found: list[Reach], wire: Wire) -> Finding:
    return error(
        f"no answer from node {_names(found)}, neither itself nor through the overlay",
        "its pods cannot be reached: the node is down or cut off, or its lease says an address that"
        " it does not have",
        f"ping {found[0].address}; if the node is gone for good, delete its lease:"
        f" etcdctl del {wire.prefix}/subnets/{found[0].subnet.replace('/', '-')}",
    )


def _closed(found: list[Reach], wire: Wire) -> Finding:
    return error(
        f"nothing comes back through the tunnel from node {_names(found)}, which answers pings",
        f"{wire.carrier} is closed on the way, in a firewall of either node or between (security"
        " groups), or no kerseyd or flanneld works there",
        f"accept it on both nodes, e.g. {_accept(wire.carrier)}; run kersey doctor there too",
    )


def _narrow(found: list[Reach], wire: Wire) -> Finding:
    path = min(each.path for each in found)
    carries = f"carries packets of {path} bytes" if path else "carries less"
    fitting = (
        f"ip link set dev {wire.uplink} mtu {path}, which kerseyd follows at once; for all nodes:"
        f" Backend.MTU {path} in the network config"
        if path
        else "find the largest size with ping -M do -s"
    )
    return error(
        f"the path to node {_names(found)} does not carry {wire.whole} bytes; it {carries}",
        f"full packets of pods ({wire.mtu} bytes and {wire.overhead} of tunnel) get lost or are cut"
        " in two: connections open, then hang with the first large transfer",
        fitting,
    )


def _narrow_tunnel(found: list[Reach], wire: Wire) -> Finding:
    return warning(
        f"packets of {wire.mtu} bytes do not come back through the tunnel from node"
        f" {_names(found)}, smaller ones do",
        "connections open, then hang with the first large transfer; perhaps that node's overlay"
        " device or its path back has a smaller MTU",
        "run kersey doctor on that node",
    )


def _checksum(found: list[Reach], wire: Wire) -> Finding:
    return warning(
        f"pings pass the tunnel to node {_names(found)}, but UDP datagrams are not answered",
        "either a firewall there drops them, or a network card computes wrong checksums for tunnel"
        " packets, of which the receiver says nothing: TCP and DNS between pods then hang",
        f"ethtool -K {wire.overlay} tx-checksum-ip-generic off on both nodes, then look again",
    )


_FINDINGS = {
    "lost out": _lost,
    "lost in": _lost,
    "dead": _dead,
    "closed": _closed,
    "narrow": _narrow,
    "narrow tunnel": _narrow_tunnel,
    "checksum": _checksum,
}


def _names(found: list[Reach]) -> str:
    return listed([str(each) for each in found])


def _ask(peers: list[ToldPeer], wire: Wire) -> Iterator[Reach]:
    """Ask some peers in one volley, and measure the path to those that do not answer in full."""
    questions = [question for peer in peers for question in _questions(peer, wire)]
    answered = answered_pings(list(dict.fromkeys(questions)))
    overlay = [_inside(peer) for peer in peers if peer.via != _DIRECT]
    refused = refused_datagrams(overlay)
    narrow = {
        IPv4Address(peer.node)
        for peer in peers
        if Ping(IPv4Address(peer.node), _SMALL) in answered
        and Ping(IPv4Address(peer.node), _whole(peer, wire)) not in answered
    }
    paths = _paths(narrow, wire)
    for peer in peers:
        node, inside, direct = IPv4Address(peer.node), _inside(peer), peer.via == _DIRECT
        yield Reach(
            subnet=peer.subnet,
            address=peer.node,
            node=Ping(node, _SMALL) in answered,
            whole_node=Ping(node, _whole(peer, wire)) in answered,
            tunnel=None if direct else Ping(inside, _SMALL) in answered,
            whole_tunnel=None if direct else Ping(inside, wire.mtu) in answered,
            datagram=None if direct else inside in refused,
            path=paths.get(node, 0),
            one_way=peer.reach.one_way if peer.reach is not None else None,
        )


def _questions(peer: ToldPeer, wire: Wire) -> Iterator[Ping]:
    node = IPv4Address(peer.node)
    yield Ping(node, _SMALL)
    yield Ping(node, _whole(peer, wire))
    if peer.via != _DIRECT:
        yield Ping(_inside(peer), _SMALL)
        yield Ping(_inside(peer), wire.mtu)


def _whole(peer: ToldPeer, wire: Wire) -> int:
    return wire.mtu if peer.via == _DIRECT else wire.whole


def _inside(peer: ToldPeer) -> IPv4Address:
    """Return the node's own address in the overlay."""
    return gateway_of(IPv4Network(peer.subnet))


def _paths(nodes: Iterable[IPv4Address], wire: Wire) -> dict[IPv4Address, int]:
    """Return the largest packet that each node answers, of usual sizes below the whole one."""
    sizes = [size for size in (*_LADDER, *_LARGEST_LADDER) if size < wire.whole]
    questions = [Ping(node, size) for node in nodes for size in sizes]
    found: dict[IPv4Address, int] = {}
    for node, size in answered_pings(questions) if questions else ():
        found[node] = max(size, found.get(node, 0))
    return found
