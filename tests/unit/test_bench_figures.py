"""The benchmark's arithmetic: medians, ratios, marks, and the proof that fast was fast."""

from dataclasses import replace

import pytest
from datapath_bench.figures import (
    BARE,
    DIRECT,
    HOST_GW,
    STRICT,
    VXLAN,
    Carrier,
    Comparison,
    Load,
    Mode,
    Sample,
    Series,
    Table,
    Variant,
    fast_part,
    must_be_fast,
    rotated,
)
from datapath_bench.machine import CpuTime

VARIANTS = [BARE, VXLAN, HOST_GW, STRICT, DIRECT]
STAT = """\
cpu  200 10 100 700 50 5 35 20 0 0
cpu0 100 5 50 350 25 5 15 10 0 0
cpu1 100 5 50 350 25 0 20 10 0 0
intr 12345
"""


def sample(value: float, *, steal: float = 0.0, fast: float | None = None) -> Sample:
    return Sample(value=value, seconds=1.0, cpu=1.0, steal=steal, fast=fast)


def series(
    variant: Variant, *samples: Sample, load: Load = Load.TCP_RR, mode: Mode = Mode.PLAIN
) -> Series:
    return Series(mode, load, variant, samples)


def test_cpu_time_of_one_cpu_is_read_in_seconds() -> None:
    time = CpuTime.parse(STAT, "cpu1")

    assert time == CpuTime(busy=1.75, stolen=0.1, total=5.6)


def test_all_cpus_together_are_not_mistaken_for_the_first() -> None:
    assert CpuTime.parse(STAT, "cpu").busy == pytest.approx(3.5)


def test_steal_and_load_are_parts_of_the_time_between() -> None:
    between = CpuTime(2.0, 0.5, 10.0) - CpuTime(1.0, 0.1, 8.0)

    assert between.steal == pytest.approx(0.2)
    assert between.load == pytest.approx(0.7)


def test_no_time_between_is_no_load() -> None:
    nothing = CpuTime(1.0, 0.1, 8.0) - CpuTime(1.0, 0.1, 8.0)

    assert (nothing.steal, nothing.load) == (0.0, 0.0)


def test_a_variant_is_named_by_backend_and_carrier() -> None:
    assert [variant.name for variant in VARIANTS] == [
        "bare",
        "vxlan kernel",
        "host-gw kernel",
        "vxlan bpf",
        "vxlan bpf direct",
    ]


def test_median_leaves_out_what_the_hypervisor_disturbed() -> None:
    measured = series(BARE, sample(10), sample(1, steal=0.06), sample(30))

    assert measured.median == 20
    assert measured.marks == ["steal 1/3"]


def test_median_of_only_disturbed_samples_is_still_given_and_marked() -> None:
    measured = series(BARE, sample(10, steal=0.2), sample(20, steal=0.2))

    assert measured.median == 15
    assert measured.marks == ["steal 2/2"]


def test_busy_samples_count_and_are_marked() -> None:
    measured = series(BARE, replace(sample(10), quiet=False), sample(20))

    assert measured.median == 15
    assert measured.marks == ["busy 1/2"]


def test_ratio_compares_within_one_mode_and_load() -> None:
    table = Table(
        (
            series(BARE, sample(100)),
            series(BARE, sample(50), mode=Mode.RULES),
            series(BARE, sample(10), load=Load.UDP_RR),
            series(STRICT, sample(40, fast=1.0), mode=Mode.RULES),
        )
    )

    assert table.ratio(table.series[-1], BARE) == pytest.approx(0.8)
    assert table.ratio(table.series[-1], VXLAN) is None


def test_ratio_compares_round_by_round_as_the_machine_slows_down() -> None:
    table = Table(
        (
            series(BARE, sample(100), sample(60), sample(100), sample(50)),
            series(STRICT, sample(90), sample(48), sample(40, steal=0.2), sample(40)),
        )
    )

    assert table.ratio(table.series[-1], BARE) == pytest.approx(0.8)


def test_ratio_of_only_disturbed_rounds_is_still_given() -> None:
    table = Table((series(BARE, sample(10, steal=0.2)), series(STRICT, sample(8))))

    assert table.ratio(table.series[-1], BARE) == pytest.approx(0.8)


def test_comparison_gives_no_ratio_to_what_has_no_base() -> None:
    table = Table((series(VXLAN, sample(40)), series(STRICT, sample(80, fast=1.0))))
    netlink = Comparison("netlink", {STRICT: VXLAN})

    assert [netlink.ratio(table, each) for each in table.series] == [None, 2.0]


def test_variants_stand_in_the_order_of_their_first_series() -> None:
    table = Table(
        (
            series(STRICT, sample(1)),
            series(BARE, sample(1)),
            series(STRICT, sample(1), load=Load.UDP_RR),
        )
    )

    assert table.variants == [STRICT, BARE]


@pytest.mark.parametrize(
    ("load", "expected"),
    [(Load.UDP_RR, 5e6), (Load.UDP_RATE, 1e7), (Load.TCP_RR, None), (Load.TCP_STREAM, None)],
)
def test_cpu_time_of_a_packet_is_given_where_packets_are_known(
    load: Load, expected: float | None
) -> None:
    # 1 s of CPU for 100 round trips or datagrams.
    assert series(BARE, sample(100), load=load).cpu_per_packet == expected


def test_cpu_time_of_a_packet_is_not_given_where_other_cpus_carry_it() -> None:
    pump = Variant("udp", Carrier.PUMP)

    assert series(pump, sample(100), load=Load.UDP_RR).cpu_per_packet is None


@pytest.mark.parametrize("fast", [0.9, 0.5, None])
def test_one_sample_that_is_slow_or_unproven_makes_a_fast_series_void(fast: float | None) -> None:
    slow = series(STRICT, sample(10, fast=0.99), sample(10, fast=fast))

    assert slow.marks == ["NOT FAST"]
    assert Table((slow,)).unproven == [slow]


def test_a_series_that_was_fast_in_every_sample_carries_no_mark() -> None:
    assert not series(DIRECT, sample(10, fast=0.91), sample(10, fast=1.0)).marks


def test_slow_variants_prove_nothing() -> None:
    assert series(VXLAN, sample(10)).is_proven


def test_only_short_connections_under_strict_admission_may_be_slow() -> None:
    exempt = {
        (variant, load)
        for variant in VARIANTS
        if variant.is_fast
        for load in Load
        if not must_be_fast(variant, load)
    }

    assert exempt == {(STRICT, Load.TCP_CRR)}


def test_fast_part_of_nothing_is_not_fast() -> None:
    assert fast_part([]) == 0.0
    assert fast_part([(True, 3), (False, 1)]) == 0.75


def test_every_variant_comes_first_once() -> None:
    orders = [rotated(VARIANTS, by) for by in range(len(VARIANTS))]

    assert {order[0] for order in orders} == set(VARIANTS)
    assert all(set(order) == set(VARIANTS) for order in orders)
