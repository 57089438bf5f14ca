"""How full the maps are, and how many flows are admitted: counted by reading them through.

Only reads, and may run on any thread beside the one that owns the datapath. It takes the CPU for
half a microsecond an element, in parts of a millisecond. The kernel keeps no such counts; and
what an LRU map gives up for a new element is counted nowhere.
"""

import struct
from dataclasses import dataclass

from kersey_loader.bpf import Map
from kersey_loader.datapath import Datapath
from kersey_loader.layout import Config, MapType

_BATCHED = (MapType.HASH, MapType.LRU_HASH)
_COUNTED = ("flows", "sightings", "endpoints", "nodes", "pod_ports")
_GENERATION_SHIFT = 48
_FLOW = struct.Struct("=QQII12xH10x")
"""Of struct flow: egress, ingress, egress_port, ingress_port, direct."""


@dataclass(frozen=True, slots=True)
class MapUse:
    """How many elements a map holds, dead or alive, and for how many it has room."""

    entries: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """The use of each map that can fill up, by name, and the flows that can be fast now."""

    maps: dict[str, MapUse]
    admitted_flows: int


@dataclass(frozen=True, slots=True)
class Stamps:
    """Which stamps count: from `first` to before `end` in this generation, from `fresh` in time."""

    first: int
    fresh: int
    end: int

    @classmethod
    def at(cls, jiffies: int, *, generation: int, max_age: int) -> "Stamps":
        """Return those that count at an instant; 0 never does."""
        first = generation << _GENERATION_SHIFT
        return cls(
            first=max(first, 1),
            fresh=max(first, first + jiffies - max_age),
            end=(generation + 1) << _GENERATION_SHIFT,
        )


def measure(datapath: Datapath) -> Occupancy:
    """Return how full the maps are. Raises BpfError, also if the datapath was closed meanwhile."""
    maps = datapath.maps
    entries = {name: _count(maps[name]) for name in _COUNTED if name != "flows"}
    entries["flows"], admitted = _count_flows(maps["flows"], _stamps(datapath))
    return Occupancy(
        maps={name: MapUse(entries[name], maps[name].spec.max_entries) for name in _COUNTED},
        admitted_flows=admitted,
    )


def admitted_among(values: bytes | memoryview, stamps: Stamps) -> int:
    """Return how many of these struct flow are admitted, as admitted() of bpf/flow.h judges."""
    first, fresh, end = stamps.first, stamps.fresh, stamps.end
    return sum(
        1
        for egress, ingress, sent_by, received_by, direct in _FLOW.iter_unpack(values)
        if first <= egress < end
        and first <= ingress < end
        and sent_by == received_by
        and (direct or (egress >= fresh and ingress >= fresh))
    )


def _stamps(datapath: Datapath) -> Stamps:
    config = Config.from_buffer_copy(datapath.maps["cfg"].lookup(bytes(4)) or bytes(Config()))
    now = datapath.clock().jiffies
    return Stamps.at(now, generation=config.generation, max_age=config.max_age)


def _count_flows(flows: Map, stamps: Stamps) -> tuple[int, int]:
    entries = admitted = 0
    for count, values in flows.value_batches():
        entries += count
        admitted += admitted_among(values, stamps)
    return entries, admitted


def _count(map_: Map) -> int:
    if map_.spec.type in _BATCHED:
        return sum(count for count, _ in map_.value_batches())
    return sum(1 for _ in map_)  # device maps know no batches
