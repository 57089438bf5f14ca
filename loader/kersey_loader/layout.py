"""The structs, numbers and maps that programs and user space share, as bpf/types.h has them.

Values only. Every compilation contains `assertions()`, so a difference between the two sides is a
compile error with its name, never a wrong byte in a map.
"""

import ctypes
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Network

from kersey_loader.tunnel import TunnelKind

Mac = ctypes.c_uint8 * 6
Address = ctypes.c_uint8 * 4
"""An IPv4 address in network byte order."""


class Program(IntEnum):
    """The programs that are attached, numbered as their counters are."""

    FROM_POD = 0
    TO_POD = 1
    FROM_UPLINK = 2
    TO_OVERLAY = 3
    TO_UPLINK = 4
    WIRE = 5

    @property
    def function(self) -> str:
        """Return the program's name in C, in its pin and on its filter."""
        return self.name.lower()


class Verdict(IntEnum):
    """Why a program was done with a packet, in the order of enum verdict; see bpf/verdict.h."""

    FAST = 0
    WITNESSED = 1
    UNRELATED = 2
    UNCONFIGURED = 3
    ADMISSION_OFF = 4
    VLAN = 5
    TRUNCATED = 6
    IP_OPTIONS = 7
    FRAGMENT = 8
    TTL = 9
    PROTOCOL = 10
    CONTROL = 11
    TOO_BIG = 12
    LENGTH = 13
    MALFORMED = 14
    NOT_ADMITTED = 15
    STALE = 16
    FLUSHED = 17
    OTHER_PORT = 18
    OTHER_KIND = 19
    PORT_GONE = 20
    ROOM = 21
    NOT_HOST = 22
    TUNNEL_FLAGS = 23
    OTHER_VNI = 24
    OTHER_VTEP = 25
    NOT_IPV4 = 26
    CONGESTION = 27
    DATAGRAMS = 28
    NODE = 29
    OTHER_ADDRESS = 30
    NOT_POD = 31
    NOT_TUNNELLED = 32
    TUNNELLED = 33
    UNSEEN = 34
    CHANGED = 35
    OTHER_GATEWAY = 36
    DECAPSULATED = 37
    UNKNOWN_NODE = 38
    FOREIGN_SOURCE = 39
    OUTSIDE_SOURCE = 40
    HIDDEN_SOURCE = 41
    POD_TUNNEL = 42

    @property
    def forged(self) -> bool:
        """Return whether it names a sender that may not send this; dropped if so configured."""
        return self >= Verdict.UNKNOWN_NODE


VERDICT_BITS = 6


class Admission(IntEnum):
    """When a flow may be fast."""

    OFF = 0
    STRICT = 1
    DIRECT = 2


class SpoofCheck(IntEnum):
    """What is done with a packet whose sender may not send it."""

    OFF = 0
    COUNT = 1
    DROP = 2


class WireDuty(IntFlag):
    """What the XDP program on the uplink does besides checking senders, once it is attached."""

    ATTACHED = 1
    DECAPSULATES = 2
    REDIRECTS = 4


class Config(ctypes.LittleEndianStructure):
    """struct config: the one entry of cfg."""

    _fields_ = (
        ("max_age", ctypes.c_uint64),
        ("witness_window", ctypes.c_uint64),
        ("network", ctypes.c_uint32),
        ("subnet_shift", ctypes.c_uint32),
        ("node", Address),
        ("vni", ctypes.c_uint8 * 4),
        ("uplink", ctypes.c_uint32),
        ("own_subnet", ctypes.c_uint32),
        ("subnets", ctypes.c_uint32),
        ("generation", ctypes.c_uint16),
        ("mtu", ctypes.c_uint16),
        ("pod_mtu", ctypes.c_uint16),
        ("port", ctypes.c_uint8 * 2),
        ("source_port", ctypes.c_uint16),
        ("source_ports", ctypes.c_uint16),
        ("admission", ctypes.c_uint8),
        ("spoof", ctypes.c_uint8),
        ("vtep_mac", Mac),
        ("hertz", ctypes.c_uint16),
        ("wire", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("carrier", ctypes.c_uint32),
        ("overlay", ctypes.c_uint32),
        ("uplink_mac", Mac),
        ("unused", ctypes.c_uint8 * 6),
    )


class Peer(ctypes.LittleEndianStructure):
    """struct peer: a slot of peers."""

    _fields_ = (
        ("node", Address),
        ("previous_node", Address),
        ("nexthop", Address),
        ("partial_sum", ctypes.c_uint32),
        ("counter", ctypes.c_uint32),
        ("vtep_mac", Mac),
        ("direct", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 37),
        ("template", ctypes.c_uint64 * 8),
    )


class FlowKey(ctypes.LittleEndianStructure):
    """struct flow_key."""

    _fields_ = (
        ("local", Address),
        ("remote", Address),
        ("local_port", ctypes.c_uint8 * 2),
        ("remote_port", ctypes.c_uint8 * 2),
        ("protocol", ctypes.c_uint8),
        ("direction", ctypes.c_uint8),
        ("reserved", ctypes.c_uint16),
    )


class Flow(ctypes.LittleEndianStructure):
    """struct flow; a stamp is generation << 48 | jiffies."""

    _fields_ = (
        ("egress", ctypes.c_uint64),
        ("ingress", ctypes.c_uint64),
        ("egress_port", ctypes.c_uint32),
        ("ingress_port", ctypes.c_uint32),
        ("pod_mac", Mac),
        ("gateway_mac", Mac),
        ("direct", ctypes.c_uint16),
        ("source_port", ctypes.c_uint8 * 2),
        ("egress_kind", ctypes.c_uint16),
        ("ingress_kind", ctypes.c_uint16),
        ("port_alive", ctypes.c_uint32),
    )


class Sighting(ctypes.LittleEndianStructure):
    """struct sighting; fact is jiffies << 32 | generation << 16 | TOS << 8 | TTL."""

    _fields_ = (
        ("fact", ctypes.c_uint64),
        ("port", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Endpoint(ctypes.LittleEndianStructure):
    """struct endpoint."""

    _fields_ = (
        ("delivered_port", ctypes.c_uint32),
        ("sent_port", ctypes.c_uint32),
        ("pod_mac", Mac),
        ("gateway_mac", Mac),
        ("reserved", ctypes.c_uint32),
    )


class Traffic(ctypes.LittleEndianStructure):
    """struct traffic: packets as on the wire, bytes of inner packets."""

    _fields_ = (
        ("fast_sent_packets", ctypes.c_uint64),
        ("fast_sent_bytes", ctypes.c_uint64),
        ("slow_sent_packets", ctypes.c_uint64),
        ("slow_sent_bytes", ctypes.c_uint64),
        ("fast_received_packets", ctypes.c_uint64),
        ("fast_received_bytes", ctypes.c_uint64),
        ("slow_received_packets", ctypes.c_uint64),
        ("slow_received_bytes", ctypes.c_uint64),
    )


class Watch(ctypes.LittleEndianStructure):
    """struct watch: the one entry of watches."""

    _fields_ = (
        ("until", ctypes.c_uint64),
        ("dropped", ctypes.c_uint64),
        ("passed", ctypes.c_uint64),
        ("interval", ctypes.c_uint64),
        ("network", ctypes.c_uint32),
        ("mask", ctypes.c_uint32),
        ("watcher", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Budget(ctypes.LittleEndianStructure):
    """struct budget: of one CPU."""

    _fields_ = (("next", ctypes.c_uint64), ("hidden", ctypes.c_uint64))


class Event(ctypes.LittleEndianStructure):
    """struct event: a record of events."""

    _fields_ = (
        ("time", ctypes.c_uint64),
        ("outer_src", Address),
        ("outer_dst", Address),
        ("src", Address),
        ("dst", Address),
        ("src_port", ctypes.c_uint8 * 2),
        ("dst_port", ctypes.c_uint8 * 2),
        ("length", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("program", ctypes.c_uint8),
        ("verdict", ctypes.c_uint8),
        ("protocol", ctypes.c_uint8),
        ("dropped", ctypes.c_uint8),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "config": Config,
    "peer": Peer,
    "flow_key": FlowKey,
    "flow": Flow,
    "sighting": Sighting,
    "endpoint": Endpoint,
    "traffic": Traffic,
    "watch": Watch,
    "budget": Budget,
    "event": Event,
}
"""C name of each shared struct to its Python twin."""


class MapType(IntEnum):
    """enum bpf_map_type of the kernel's ABI, as far as used."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    DEVMAP_HASH = 25
    RINGBUF = 27

    @property
    def per_cpu(self) -> bool:
        """Return whether each possible CPU has a value of its own."""
        return self is MapType.PERCPU_ARRAY


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as it must be; sizes in bytes, `value_size` of one CPU's value.

    A ring buffer has neither keys nor values: `max_entries` is its size in bytes.
    """

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int


_EVENTS_SIZE = 1 << 18
"""A power of two, and whole pages wherever those are 4 to 64 kB."""


def map_specs(*, subnets: int, peers: int, flows: int, ports: int) -> tuple[MapSpec, ...]:
    """Return the maps for a network of `subnets` leases of which `peers` can be fast at once.

    Twice the slots, since a replaced one must rest before it is written again; slot 0 means none.
    """
    size = {name: ctypes.sizeof(struct) for name, struct in STRUCTS.items()}
    return (
        MapSpec("cfg", MapType.ARRAY, 4, size["config"], 1),
        MapSpec("peer_index", MapType.ARRAY, 4, 4, subnets),
        MapSpec("peers", MapType.ARRAY, 4, size["peer"], 2 * peers + 1),
        MapSpec("peer_counters", MapType.PERCPU_ARRAY, 4, size["traffic"], peers + 1),
        MapSpec("nodes", MapType.HASH, 4, 4, 2 * peers + 1),
        MapSpec("pod_ports", MapType.DEVMAP_HASH, 4, 4, ports),
        MapSpec("redirect_ports", MapType.DEVMAP_HASH, 4, 4, ports),
        MapSpec("endpoints", MapType.LRU_HASH, 4, size["endpoint"], 2 * ports),
        MapSpec("flows", MapType.LRU_HASH, size["flow_key"], size["flow"], flows),
        MapSpec("sightings", MapType.LRU_HASH, size["flow_key"], size["sighting"], 4096),
        MapSpec("verdicts", MapType.PERCPU_ARRAY, 4, 8, len(Program) << VERDICT_BITS),
        MapSpec("watches", MapType.ARRAY, 4, size["watch"], 1),
        MapSpec("budgets", MapType.PERCPU_ARRAY, 4, size["budget"], 1),
        MapSpec("events", MapType.RINGBUF, 0, 0, _EVENTS_SIZE),
    )


def layout_hash(specs: tuple[MapSpec, ...], *, tunnel: TunnelKind, network: IPv4Network) -> str:
    """Return a short name for the layout of maps: equal exactly if their contents can be shared.

    What the programs of one tunnel wrote means something else to those of another, and subnet
    numbers of one network mean other subnets in another.
    """
    fields = {
        name: [(field, getattr(struct, field).offset) for field in _field_names(struct)]
        for name, struct in STRUCTS.items()
    }
    maps = [(s.name, s.type, s.key_size, s.value_size, s.max_entries) for s in specs]
    text = json.dumps([fields, maps, tunnel, str(network)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def assertions() -> str:
    """Return C that fails to compile unless every struct and number is the same on both sides."""
    return "\n".join(_assertion(claim) for claim in _claims()) + "\n"


def _claims() -> Iterator[str]:
    for name, struct in STRUCTS.items():
        yield f"sizeof(struct {name}) == {ctypes.sizeof(struct)}"
        for field in _field_names(struct):
            offset, size = getattr(struct, field).offset, getattr(struct, field).size
            yield f"__builtin_offsetof(struct {name}, {field}) == {offset}"
            yield f"sizeof(((struct {name} *)0)->{field}) == {size}"
    for enum in (Program, Verdict):
        for member in enum:
            yield f"{enum.__name__.upper()}_{member.name} == {member.value}"
    yield f"VERDICT_COUNT == {len(Verdict)}"
    yield f"VERDICT_BITS == {VERDICT_BITS}"
    for admission in Admission:
        yield f"ADMISSION_{admission.name} == {admission.value}"
    for spoof in SpoofCheck:
        yield f"SPOOF_{spoof.name} == {spoof.value}"
    for duty in WireDuty:
        yield f"WIRE_{duty.name} == {duty.value}"


def _assertion(claim: str) -> str:
    return f'_Static_assert({claim}, "kersey_loader/layout.py: {claim}");'


def _field_names(struct: type[ctypes.Structure]) -> tuple[str, ...]:
    return tuple(field[0] for field in struct._fields_)
