"""What each row of the benchmark of the backends is compared to, and what is wanted of it."""

import pytest
from datapath_bench.backends import ASKED_FOR, comparisons, goals
from datapath_bench.figures import BARE, Carrier, Load, Variant


def found(ipip: Carrier) -> list[Variant]:
    """Return the rows of a machine where the kernel carries ipip, or does not."""
    carriers = {Variant("udp", Carrier.KERNEL): Carrier.PUMP, Variant("ipip", Carrier.KERNEL): ipip}
    return [
        BARE,
        *(Variant(each.backend, carriers.get(each, each.carrier)) for each in ASKED_FOR),
    ]


def bases(variants: list[Variant]) -> dict[str, dict[str, str]]:
    return {
        comparison.name: {row.name: base.name for row, base in comparison.bases.items()}
        for comparison in comparisons(variants)
    }


def test_every_backend_is_measured_with_and_without_programs() -> None:
    assert [variant.name for variant in found(Carrier.PUMP)] == [
        "bare",
        "vxlan kernel",
        "vxlan bpf",
        "host-gw kernel",
        "host-gw bpf",
        "udp pump",
        "udp bpf",
        "ipip pump",
        "ipip bpf",
    ]


def test_every_row_is_compared_to_bare() -> None:
    rows = [variant.name for variant in found(Carrier.KERNEL)]

    assert bases(found(Carrier.KERNEL))["bare"] == dict.fromkeys(rows, "bare")


@pytest.mark.parametrize("ipip", [Carrier.KERNEL, Carrier.PUMP])
def test_rows_are_compared_to_vxlan_of_their_own_datapath(ipip: Carrier) -> None:
    assert bases(found(ipip))["vxlan"] == {
        "vxlan kernel": "vxlan kernel",
        "host-gw kernel": "vxlan kernel",
        "udp pump": "vxlan kernel",
        f"ipip {ipip}": "vxlan kernel",
        "vxlan bpf": "vxlan bpf",
        "host-gw bpf": "vxlan bpf",
        "udp bpf": "vxlan bpf",
        "ipip bpf": "vxlan bpf",
    }


@pytest.mark.parametrize("ipip", [Carrier.KERNEL, Carrier.PUMP])
def test_rows_with_programs_are_compared_to_what_the_same_backend_does_without(
    ipip: Carrier,
) -> None:
    assert bases(found(ipip))["netlink"] == {
        "vxlan bpf": "vxlan kernel",
        "host-gw bpf": "host-gw kernel",
        "udp bpf": "udp pump",
        "ipip bpf": f"ipip {ipip}",
    }


def test_goals_are_those_of_the_three_backends_beside_vxlan() -> None:
    wanted = {
        (goal.variant.name, goal.base.name, goal.load): goal.at_least
        for goal in goals(found(Carrier.PUMP))
    }
    round_trips = (Load.TCP_RR, Load.UDP_RR)

    assert wanted == {
        ("udp bpf", "udp pump", Load.TCP_STREAM): 20,
        **{("host-gw bpf", "host-gw kernel", load): 1.1 for load in round_trips},
        **{("udp bpf", "vxlan bpf", load): 0.95 for load in (*round_trips, Load.TCP_STREAM)},
        **{("ipip bpf", "vxlan bpf", load): 0.95 for load in (*round_trips, Load.TCP_STREAM)},
    }
