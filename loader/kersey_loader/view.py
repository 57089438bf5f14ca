"""The fast path as its pins show it to anybody with root: peers, flows, counters, settings.

Needs no daemon and no compiler, and changes nothing apart from `flush`. What is read while packets
flow is each entry's own state, never that of all of them at one instant.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

from kersey_loader import pins
from kersey_loader.bpf import (
    Descriptor,
    Map,
    link_info,
    map_info,
    open_pin,
    program_info,
    run_once,
)
from kersey_loader.datapath import Clock, Count, PeerTraffic
from kersey_loader.errors import LoaderError
from kersey_loader.layout import (
    VERDICT_BITS,
    Admission,
    Config,
    Flow,
    FlowKey,
    MapSpec,
    MapType,
    Peer,
    Program,
    SpoofCheck,
    Traffic,
    Verdict,
    map_specs,
)

_STAMP_BITS = 48
_WAYS = ("fast_sent", "slow_sent", "fast_received", "slow_received")
_NOBODY = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class ViewedConfig:
    """What the programs were told. MTUs in bytes of IP packet, `max_age` in seconds.

    `uplink` is an ifindex; `vni` and `port` are 0 where the tunnel has none.
    """

    network: IPv4Network
    subnet: IPv4Network
    node: IPv4Address
    uplink: int
    vni: int
    port: int
    mtu: int
    pod_mtu: int
    max_age: float
    generation: int
    admission: Admission
    spoof: SpoofCheck


@dataclass(frozen=True, slots=True)
class ViewedPeer:
    """A remote lease as the programs know it; `nexthop` None leaves the way to the kernel."""

    subnet: IPv4Network
    node: IPv4Address
    direct: bool
    nexthop: IPv4Address | None
    traffic: PeerTraffic


@dataclass(frozen=True, slots=True)
class ViewedFlow:
    """One entry of flows: `local` is our pod. Ages are seconds since each direction was witnessed.

    An age is None for a direction that has not been witnessed in this generation; `verdict` says
    what the next ordinary packet of the flow meets. `port` is an ifindex, 0 if none is known.
    """

    local: IPv4Address
    local_port: int
    remote: IPv4Address
    remote_port: int
    protocol: int
    port: int
    direct: bool
    egress_age: float | None
    ingress_age: float | None
    verdict: Verdict

    @property
    def age(self) -> float:
        """Return seconds since either direction was witnessed; infinite if none is valid."""
        ages = [age for age in (self.egress_age, self.ingress_age) if age is not None]
        return min(ages, default=float("inf"))

    @property
    def is_fast(self) -> bool:
        """Return whether the flow is on the fast path."""
        return self.verdict is Verdict.FAST


def open_view(directory: Path) -> "View":
    """Open what is pinned in a network's directory.

    Raises LoaderError if nothing is there, or if it is another version's; BpfError, PermissionError
    as the kernel says.
    """
    found = sorted(directory.iterdir()) if directory.exists() else []
    homes = [home for home in found if home.name.startswith("maps-") and (home / "cfg").exists()]
    if not homes:
        raise LoaderError(f"nothing of a fast path is pinned in {directory}")
    home = homes[0] if len(homes) == 1 else _in_use(directory, homes)
    maps: dict[str, Map] = {}
    try:
        for spec in map_specs(subnets=0, peers=0, flows=0, ports=0):
            maps[spec.name] = _open(home / spec.name, spec)
    except LoaderError:
        for map_ in maps.values():
            map_.close()
        raise
    return View(home, maps)


class View:
    """Open maps of one network. A context manager."""

    def __init__(self, home: Path, maps: Mapping[str, Map]) -> None:
        self._home = home
        self._maps = maps

    @property
    def home(self) -> Path:
        """Return the directory that the maps are pinned in, the programs' one beside it."""
        return self._home

    @property
    def maps(self) -> Mapping[str, Map]:
        """Return the open maps by name."""
        return self._maps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for map_ in self._maps.values():
            map_.close()

    @cached_property
    def _raw(self) -> Config:
        return Config.from_buffer_copy(self._maps["cfg"].lookup(bytes(4)) or bytes(Config()))

    @cached_property
    def config(self) -> ViewedConfig | None:
        """What the programs were told as of the first reading, None before anybody told them."""
        raw = self._raw
        if not any(raw.node) or not raw.hertz:
            return None
        length = 32 - int(raw.subnet_shift)
        prefix = length - (int(raw.subnets).bit_length() - 1)
        return ViewedConfig(
            network=IPv4Network((raw.network, prefix)),
            subnet=self._subnet(int(raw.own_subnet)),
            node=IPv4Address(bytes(raw.node)),
            uplink=int(raw.uplink),
            vni=int.from_bytes(bytes(raw.vni), "big") >> 8,
            port=int.from_bytes(bytes(raw.port), "big"),
            mtu=int(raw.mtu),
            pod_mtu=int(raw.pod_mtu),
            max_age=raw.max_age / raw.hertz,
            generation=int(raw.generation),
            admission=Admission(raw.admission),
            spoof=SpoofCheck(raw.spoof),
        )

    @property
    def max_flows(self) -> int:
        """Return how many flows the map has room for."""
        return self._maps["flows"].spec.max_entries

    def clock(self) -> Clock:
        """Return the clock that stamps are made of. Raises LoaderError without its program."""
        for home in sorted(self._home.parent.glob("programs-*")):
            fd = open_pin(home / pins.CLOCK)
            if fd is not None:
                with Descriptor(fd) as program:
                    (jiffies,) = struct.unpack_from("=Q", run_once(program.fd, bytes(64)).packet)
                return Clock(jiffies, int(self._raw.hertz))
        raise LoaderError(f"no clock is pinned in {self._home.parent}")

    def pod_ports(self) -> frozenset[int]:
        """Return the ifindexes of the pod ports that can be fast."""
        return frozenset(int.from_bytes(key, "little") for key in self._maps["pod_ports"])

    def senders(self) -> frozenset[IPv4Address]:
        """Return the nodes whose tunnel packets are accepted."""
        return frozenset(IPv4Address(key) for key in self._maps["nodes"])

    def peers(self) -> dict[IPv4Network, ViewedPeer]:
        """Return every peer by subnet, with what went to and came from it since it was added."""
        numbers, slots = self._maps["peer_index"].values(), self._maps["peers"].values()
        counters = self._maps["peer_counters"].values()
        size = self._maps["peers"].spec.value_size
        found = {}
        for index in range(len(numbers) // 4):
            slot = int.from_bytes(numbers[4 * index : 4 * index + 4], "little")
            if slot:
                raw = Peer.from_buffer_copy(slots, slot * size)
                peer = self._peer(self._subnet(index), raw, counters)
                found[peer.subnet] = peer
        return found

    def flows(self) -> Iterator[ViewedFlow]:
        """Yield every flow, admitted or not."""
        now, ports = self.clock(), self.pod_ports()
        for key, value in self._maps["flows"].items():
            flow = Flow.from_buffer_copy(value)
            yield view_flow(FlowKey.from_buffer_copy(key), flow, self._raw, now=now, ports=ports)

    def counters(self) -> dict[tuple[Program, Verdict], int]:
        """Return how often each program was done with a packet for each reason."""
        map_ = self._maps["verdicts"]
        cells = struct.unpack(f"={map_.spec.max_entries * map_.cpus}Q", map_.values())
        return {
            (program, verdict): sum(cells[at * map_.cpus : (at + 1) * map_.cpus])
            for program in Program
            for verdict in Verdict
            if (at := program << VERDICT_BITS | verdict) >= 0
        }

    def flush(self) -> None:
        """Void every admitted flow. Only where no daemon runs, which would not know of it."""
        raw = Config.from_buffer_copy(bytes(self._raw))
        raw.generation = (raw.generation + 1) & 0xFFFF
        self._maps["cfg"].update(bytes(4), bytes(raw))

    def _subnet(self, index: int) -> IPv4Network:
        shift = int(self._raw.subnet_shift)
        return IPv4Network((int(self._raw.network) + (index << shift), 32 - shift))

    def _peer(self, subnet: IPv4Network, raw: Peer, counters: bytes) -> ViewedPeer:
        nexthop = IPv4Address(bytes(raw.nexthop))
        return ViewedPeer(
            subnet=subnet,
            node=IPv4Address(bytes(raw.node)),
            direct=bool(raw.direct),
            nexthop=None if nexthop == _NOBODY else nexthop,
            traffic=self._traffic(int(raw.counter), counters),
        )

    def _traffic(self, counter: int, counters: bytes) -> PeerTraffic:
        size, cpus = len(bytes(Traffic())), self._maps["peer_counters"].cpus
        parts = [
            Traffic.from_buffer_copy(counters, (counter * cpus + cpu) * size)
            for cpu in range(cpus if counter else 0)  # 0 is nobody's
        ]
        return PeerTraffic(
            *(
                Count(
                    sum(getattr(part, f"{way}_packets") for part in parts),
                    sum(getattr(part, f"{way}_bytes") for part in parts),
                )
                for way in _WAYS
            )
        )


def view_flow(
    key: FlowKey, flow: Flow, config: Config, *, now: Clock, ports: frozenset[int]
) -> ViewedFlow:
    """Return a flow in words; `ports` are the pod ports that are alive."""
    return ViewedFlow(
        local=IPv4Address(bytes(key.local)),
        local_port=int.from_bytes(bytes(key.local_port), "big"),
        remote=IPv4Address(bytes(key.remote)),
        remote_port=int.from_bytes(bytes(key.remote_port), "big"),
        protocol=int(key.protocol),
        port=int(flow.egress_port or flow.ingress_port),
        direct=bool(flow.direct),
        egress_age=_age(flow.egress, config, now),
        ingress_age=_age(flow.ingress, config, now),
        verdict=judge(flow, config, now=now, ports=ports),
    )


def judge(flow: Flow, config: Config, *, now: Clock, ports: frozenset[int]) -> Verdict:
    """Return what the next packet of a flow meets, by the order of admitted() in bpf/flow.h.

    Whether that packet has the DSCP and TTL that were witnessed cannot be known beforehand.
    """
    stamps = (int(flow.egress), int(flow.ingress))
    old = not flow.direct and any(_ticks(stamp, now) > config.max_age for stamp in stamps)
    reasons = (
        (config.admission == Admission.OFF, Verdict.ADMISSION_OFF),
        (not all(stamps), Verdict.NOT_ADMITTED),
        (any(stamp >> _STAMP_BITS != config.generation for stamp in stamps), Verdict.FLUSHED),
        (flow.egress_port != flow.ingress_port, Verdict.OTHER_PORT),
        (flow.ingress_port not in ports, Verdict.PORT_GONE),
        (old, Verdict.STALE),
    )
    return next((verdict for applies, verdict in reasons if applies), Verdict.FAST)


def _age(stamp: int, config: Config, now: Clock) -> float | None:
    if not stamp or stamp >> _STAMP_BITS != config.generation:
        return None
    return max(0, _ticks(stamp, now)) / now.hertz


def _ticks(stamp: int, now: Clock) -> int:
    """Return jiffies since a stamp; somewhat negative for one that was made after `now`."""
    mask = (1 << _STAMP_BITS) - 1
    return (now.jiffies & mask) - (stamp & mask)


def _open(path: Path, spec: MapSpec) -> Map:
    """Open a map of any size whose entries are as ours."""
    fd = open_pin(path)
    if fd is None:
        raise LoaderError(f"{path} is not pinned")
    info = map_info(fd)
    if (info.type, info.key_size, info.value_size) != (spec.type, spec.key_size, spec.value_size):
        Descriptor(fd).close()
        raise LoaderError(f"{path} is of another version of Kersey than this command")
    return Map(
        fd,
        MapSpec(spec.name, MapType(info.type), info.key_size, info.value_size, info.max_entries),
    )


def _in_use(directory: Path, homes: list[Path]) -> Path:
    """Return the maps that attached programs work on; without any, those that were made last."""
    used = frozenset(_maps_of_links(directory))
    for home in homes:
        fd = open_pin(home / "cfg")
        if fd is None:
            continue
        with Descriptor(fd) as map_:
            if map_info(map_.fd).id in used:
                return home
    return max(homes, key=lambda home: home.stat().st_mtime_ns)


def _maps_of_links(directory: Path) -> Iterator[int]:
    """Yield the ids of the maps of those pinned programs that are on devices."""
    attached = frozenset(_linked_programs(directory))
    for path in directory.glob(f"programs-*/{Program.FROM_UPLINK.function}"):
        fd = open_pin(path)
        if fd is not None:
            with Descriptor(fd) as program:
                info = program_info(program.fd)
            if info.id in attached:
                yield from info.map_ids


def _linked_programs(directory: Path) -> Iterator[int]:
    for path in directory.glob("links/*"):
        fd = open_pin(path)
        if fd is not None:
            with Descriptor(fd) as link:
                yield link_info(link.fd).program
