"""Samples of the benchmark and what they amount to. Pure: values in, values out."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_T = TypeVar("_T")

STEAL_LIMIT = 0.05
FAST_LIMIT = 0.9


class Carrier(StrEnum):
    """Who carries packets from node to node."""

    WIRE = "wire"
    """Nobody: from one node's own address to the other's."""
    KERNEL = "kernel"
    PUMP = "pump"
    """Threads of the daemons, between a TUN device and a socket."""
    BPF = "bpf"
    BPF_DIRECT = "bpf direct"
    """As BPF, TCP admitted at its SYN."""
    BPF_XDP = "bpf xdp"
    """As BPF, with the XDP program on the uplink in native mode."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A way for packets between two nodes: a backend, and who carries them."""

    backend: str
    carrier: Carrier

    @property
    def name(self) -> str:
        """What people read."""
        return "bare" if self.is_bare else f"{self.backend} {self.carrier}"

    @property
    def is_bare(self) -> bool:
        return self.carrier is Carrier.WIRE

    @property
    def is_fast(self) -> bool:
        """Whether Kersey's programs carry its packets."""
        return self.carrier in (Carrier.BPF, Carrier.BPF_DIRECT, Carrier.BPF_XDP)


BARE = Variant("", Carrier.WIRE)
VXLAN = Variant("vxlan", Carrier.KERNEL)
HOST_GW = Variant("host-gw", Carrier.KERNEL)
STRICT = Variant("vxlan", Carrier.BPF)
DIRECT = Variant("vxlan", Carrier.BPF_DIRECT)


class Mode(StrEnum):
    """Whether the nodes have netfilter rules."""

    PLAIN = "no rules"
    RULES = "with rules"


class Load(StrEnum):
    """What is sent."""

    TCP_RR = "TCP request/response"
    TCP_CRR = "TCP connect-request-close"
    UDP_RR = "UDP request/response"
    TCP_STREAM = "TCP stream, cubic, 64 KiB writes"
    IPERF3 = "TCP stream, cubic, by iperf3"
    UDP_RATE = "UDP one way, 64 bytes"

    @property
    def unit(self) -> str:
        """What a sample's value counts per second."""
        return _UNITS[self]


_UNITS = {
    Load.TCP_RR: "round trips/s",
    Load.TCP_CRR: "connections/s",
    Load.UDP_RR: "round trips/s",
    Load.TCP_STREAM: "Gbit/s",
    Load.IPERF3: "Gbit/s",
    Load.UDP_RATE: "packets/s",
}
_PACKETS = {Load.UDP_RR: 2, Load.UDP_RATE: 1}
"""Packets for each thing counted, of the loads where that number is certain."""


def must_be_fast(variant: Variant, load: Load) -> bool:
    """Return whether a measurement is void if the packets took the slow path.

    Strict admission leaves the opening and closing packets of a connection to the stack, so that
    short connections are mostly slow by design.
    """
    is_strict = variant.carrier in (Carrier.BPF, Carrier.BPF_XDP)
    return variant.is_fast and not (is_strict and load is Load.TCP_CRR)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. `value` per second as the load's unit says; `cpu` in seconds.

    `fast` is the part of the packets that the programs took over, None without programs.
    """

    value: float
    seconds: float
    cpu: float
    steal: float = 0.0
    quiet: bool = True
    fast: float | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether the hypervisor took too much for the value to count."""
        return self.steal > STEAL_LIMIT


@dataclass(frozen=True, slots=True)
class Series:
    """All samples of one load over one variant in one mode."""

    mode: Mode
    load: Load
    variant: Variant
    samples: tuple[Sample, ...]

    @property
    def counted(self) -> Sequence[Sample]:
        """The undisturbed samples; all of them where there is no other."""
        return [sample for sample in self.samples if not sample.is_disturbed] or self.samples

    @property
    def values(self) -> list[float]:
        return [sample.value for sample in self.counted]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def cpu_per_packet(self) -> float | None:
        """Nanoseconds of the pinned CPU for a packet, both ends and everything between.

        None where packets are not counted, and where another CPU has a part in carrying them.
        """
        packets = _PACKETS.get(self.load)
        if packets is None or self.variant.carrier is Carrier.PUMP:
            return None
        return statistics.median(
            1e9 * sample.cpu / (sample.value * sample.seconds * packets) for sample in self.counted
        )

    @property
    def fast(self) -> float | None:
        """The fast part of the worst sample, None without programs."""
        return min((part for s in self.samples if (part := s.fast) is not None), default=None)

    @property
    def is_proven(self) -> bool:
        """Whether what must have been fast was fast, in every sample."""
        if not must_be_fast(self.variant, self.load):
            return True
        return all(s.fast is not None and s.fast > FAST_LIMIT for s in self.samples)

    @property
    def marks(self) -> list[str]:
        """What a reader must know before believing the figure."""
        stolen = sum(sample.is_disturbed for sample in self.samples)
        loud = sum(not sample.quiet for sample in self.samples)
        marks = [] if self.is_proven else ["NOT FAST"]
        marks += [f"steal {stolen}/{len(self.samples)}"] if stolen else []
        marks += [f"busy {loud}/{len(self.samples)}"] if loud else []
        return marks


def ratio_of_rounds(series: Series, base: Series) -> float:
    """Return the median of the ratios of each round: both sides of one were measured together.

    So a machine that is slower for some rounds changes nothing. Rounds in which the hypervisor
    disturbed one of the two are left out while there are others.
    """
    rounds = list(zip(series.samples, base.samples, strict=True))
    counted = [pair for pair in rounds if not any(sample.is_disturbed for sample in pair)]
    return statistics.median(mine.value / other.value for mine, other in counted or rounds)


@dataclass(frozen=True, slots=True)
class Table:
    """All series, with ratios between those of one mode and load."""

    series: tuple[Series, ...]

    @property
    def variants(self) -> list[Variant]:
        """Return what was measured, in the order of the series."""
        return list(dict.fromkeys(series.variant for series in self.series))

    def find(self, mode: Mode, load: Load, variant: Variant) -> Series | None:
        """Return one series, None if it was not measured."""
        wanted = (mode, load, variant)
        found = (s for s in self.series if (s.mode, s.load, s.variant) == wanted)
        return next(found, None)

    def ratio(self, series: Series, base: Variant) -> float | None:
        """Return how it compares to `base` in the same mode and load, by `ratio_of_rounds`."""
        other = self.find(series.mode, series.load, base)
        return None if other is None else ratio_of_rounds(series, other)

    @property
    def unproven(self) -> list[Series]:
        """Series that claim to be fast and were not."""
        return [series for series in self.series if not series.is_proven]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column of ratios: its name, and what each variant is compared to."""

    name: str
    bases: Mapping[Variant, Variant]

    def ratio(self, table: Table, series: Series) -> float | None:
        """Return the median ratio, None for a variant that is compared to nothing."""
        base = self.bases.get(series.variant)
        return None if base is None else table.ratio(series, base)


def rotated(variants: Sequence[_T], by: int) -> list[_T]:
    """Return the variants in their order, another one first each time."""
    start = by % len(variants)
    return [*variants[start:], *variants[:start]]


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """What one program costs under one load, over both nodes."""

    load: Load
    program: str
    runs: int
    nanoseconds: float
    """For one run, the kernel's own measuring of some 20 ns included; the median of all rounds."""


@dataclass(frozen=True, slots=True)
class FlowSize:
    """Round trips with that many flows in the map; no values where `reason` says why."""

    entries: int
    values: tuple[float, ...]
    reason: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def fast_part(changes: Iterable[tuple[bool, int]]) -> float:
    """Return the part of the packets that were fast, of pairs of (fast, how many)."""
    counted = list(changes)
    total = sum(count for _, count in counted)
    return sum(count for fast, count in counted if fast) / total if total else 0.0
