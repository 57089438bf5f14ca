"""Which variants the benchmark of the backends has, and what each is compared to. Pure."""

from collections.abc import Sequence

from datapath_bench.figures import BARE, Carrier, Comparison, Load, Variant
from datapath_bench.goals import Goal

BACKENDS = ("vxlan", "host-gw", "udp", "ipip")
ASKED_FOR = tuple(
    Variant(backend, carrier) for backend in BACKENDS for carrier in (Carrier.KERNEL, Carrier.BPF)
)
"""Each backend without and with programs. Who carries without them shows when it is up."""

LOADS = (Load.TCP_RR, Load.UDP_RR, Load.TCP_STREAM)

_OVER_PUMP = 20.0
_OVER_ROUTES = 1.1
_AS_GOOD = 0.95
"""No more than 5 % less."""


def comparisons(variants: Sequence[Variant]) -> tuple[Comparison, ...]:
    """Return the ratios: to bare, to vxlan carried alike, to the same backend without programs."""
    overlays = [variant for variant in variants if not variant.is_bare]
    slow, fast = _by_backend(overlays, fast=False), _by_backend(overlays, fast=True)
    vxlan = {v: (fast if v.is_fast else slow)["vxlan"] for v in overlays}
    netlink = {variant: slow[backend] for backend, variant in fast.items()}
    return (
        Comparison("bare", dict.fromkeys(variants, BARE)),
        Comparison("vxlan", vxlan),
        Comparison("netlink", netlink),
    )


def goals(variants: Sequence[Variant]) -> tuple[Goal, ...]:
    """Return what programs are to achieve for each backend."""
    slow, fast = _by_backend(variants, fast=False), _by_backend(variants, fast=True)
    return (
        Goal(Load.TCP_STREAM, fast["udp"], slow["udp"], _OVER_PUMP),
        *(
            Goal(load, fast["host-gw"], slow["host-gw"], _OVER_ROUTES)
            for load in (Load.TCP_RR, Load.UDP_RR)
        ),
        *(
            Goal(load, fast[backend], fast["vxlan"], _AS_GOOD)
            for backend in ("udp", "ipip")
            for load in LOADS
        ),
    )


def _by_backend(variants: Sequence[Variant], *, fast: bool) -> dict[str, Variant]:
    return {v.backend: v for v in variants if v.is_fast == fast and not v.is_bare}
