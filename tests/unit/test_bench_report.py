"""The benchmark's tables, JSON object and plot say what was measured, and mark what is void."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from datapath_bench.backends import ASKED_FOR
from datapath_bench.figures import (
    BARE,
    DIRECT,
    STRICT,
    VXLAN,
    Carrier,
    Comparison,
    FlowSize,
    Load,
    Mode,
    ProgramCost,
    Sample,
    Series,
    Table,
    Variant,
)
from datapath_bench.goals import Goal, Judgement, Outcome
from datapath_bench.report import Report, as_object, as_svg, as_text

SVG = "{http://www.w3.org/2000/svg}"


def series(variant: Variant, *values: float, fast: float | None = None) -> Series:
    samples = tuple(Sample(value, seconds=1.0, cpu=1.0, fast=fast) for value in values)
    return Series(Mode.PLAIN, Load.UDP_RR, variant, samples)


REPORT = Report(
    setting={"rounds": 3},
    table=Table(
        (
            series(BARE, 1000, 900, 1100),
            series(VXLAN, 500, 400, 600),
            series(STRICT, 800, 700, 900, fast=0.999),
            series(DIRECT, 850, 850, 850, fast=0.2),
        )
    ),
    comparisons=(
        Comparison("bare", dict.fromkeys((BARE, VXLAN, STRICT, DIRECT), BARE)),
        Comparison("vxlan", dict.fromkeys((BARE, VXLAN, STRICT, DIRECT), VXLAN)),
        Comparison("netlink", {STRICT: VXLAN}),
    ),
    programs=(ProgramCost(Load.UDP_RR, "from_pod", runs=12345, nanoseconds=301.6),),
    flows=(FlowSize(1, (70_000.0, 71_000.0, 69_000.0)), FlowSize(1_000_000, (), "not run: small")),
    goals=(
        Judgement(Goal(Load.UDP_RR, STRICT, VXLAN, 1.4), 1.6, Outcome.REACHED),
        Judgement(Goal(Load.TCP_RR, STRICT, VXLAN, 1.4), None, Outcome.UNPROVEN),
    ),
    notes=("measured at night",),
)


def row(name: str) -> list[str]:
    line = next(line for line in as_text(REPORT).splitlines() if line.startswith(f"  {name}  "))
    return line.removeprefix(f"  {name}").split()


def test_row_has_median_spread_ratios_cpu_time_and_fast_part() -> None:
    figures = ["800.0", "700.0", "900.0", "0.80", "1.60", "1.60", "625000", "99.9%"]
    assert row("vxlan bpf") == figures


def test_column_of_a_ratio_that_a_row_does_not_have_stays_empty() -> None:
    lines = as_text(REPORT).splitlines()
    end = next(line for line in lines if "/netlink" in line).index("/netlink") + len("/netlink")
    cells = [
        line[end - 8 : end].strip() for line in lines if line.startswith(("  vxlan", "  bare"))
    ]

    assert cells[:4] == ["", "", "1.60", ""]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1000, 3), ["3.00", "0.003"]),
        ((1000, 90), ["90.0", "0.090"]),
        ((2, 100_000), ["100,000", "50000.0"]),
    ],
)
def test_small_figures_keep_their_digits(values: tuple[float, float], expected: list[str]) -> None:
    table = Table((series(BARE, values[0]), series(VXLAN, values[1])))
    text = as_text(Report({}, table, (Comparison("bare", {VXLAN: BARE}),)))
    cells = text.splitlines()[-1].split()

    assert [cells[2], cells[5]] == expected


def test_goals_say_what_was_reached_of_what_between_whom() -> None:
    lines = [" ".join(line.split()) for line in as_text(REPORT).splitlines()]

    assert "reached 1.60 of 1.4 vxlan bpf / vxlan kernel UDP request/response" in lines
    assert "not proven of 1.4 vxlan bpf / vxlan kernel TCP request/response" in lines
    assert lines[-1] == "measured at night"


def test_what_a_run_did_not_look_at_has_no_heading() -> None:
    lines = as_text(Report({}, REPORT.table, ())).splitlines()

    assert lines[-1].startswith("  vxlan bpf direct")


def test_row_that_was_not_fast_says_so() -> None:
    assert row("vxlan bpf direct")[-2:] == ["NOT", "FAST"]


def test_text_has_programs_and_flow_sizes_also_those_not_run() -> None:
    lines = [" ".join(line.split()) for line in as_text(REPORT).splitlines()]

    assert "UDP request/response from_pod 302 ns 12,345 runs" in lines
    assert "1 70,000 round trips/s (69,000..71,000)" in lines
    assert "1,000,000 not run: small" in lines


def test_loads_that_were_not_run_have_no_table() -> None:
    assert Load.TCP_STREAM not in as_text(REPORT)


def test_object_survives_json_with_every_sample_and_ratio() -> None:
    read = json.loads(json.dumps(as_object(REPORT)))
    strict = next(entry for entry in read["series"] if entry["variant"] == "vxlan bpf")

    assert (strict["median"], strict["min"], strict["max"]) == (800, 700, 900)
    assert (strict["to_bare"], strict["to_vxlan"], strict["to_netlink"]) == (0.8, 1.6, 1.6)
    assert [entry["value"] for entry in strict["samples"]] == [800, 700, 900]
    assert read["not_fast"] == [
        {"mode": "no rules", "load": "UDP request/response", "variant": "vxlan bpf direct"}
    ]
    assert read["flow_map"][1]["reason"] == "not run: small"
    assert read["goals"][0] == {
        "load": "UDP request/response",
        "variant": "vxlan bpf",
        "base": "vxlan kernel",
        "at_least": 1.4,
        "ratio": 1.6,
        "outcome": "reached",
    }
    assert read["notes"] == ["measured at night"]


def test_plot_has_a_bar_as_long_as_its_ratio_for_each_series() -> None:
    plot = ET.fromstring(as_svg(REPORT))  # noqa: S314  # our own text
    widths = [
        int(bar.attrib["width"]) for bar in plot.iter(f"{SVG}rect") if bar.attrib.get("x") == "270"
    ]

    assert [width / widths[0] for width in widths] == [1.0, 0.5, 0.8, 0.85]


def test_every_variant_has_a_colour_of_its_own_and_a_place_in_the_legend() -> None:
    pumped = [replace(variant, carrier=Carrier.PUMP) for variant in ASKED_FOR if is_pumped(variant)]
    found = [BARE, *(variant for variant in ASKED_FOR if not is_pumped(variant)), *pumped]
    table = Table(tuple(series(variant, 1000) for variant in found))
    plot = ET.fromstring(as_svg(Report({}, table, ())))  # noqa: S314  # our own text
    keys = [key.attrib for key in plot.iter(f"{SVG}rect") if key.attrib.get("height") == "12"]
    legend, bars = keys[: len(found)], keys[len(found) :]

    assert len({key["fill"] for key in legend}) == len(found)
    assert [key["fill"] for key in legend] == [bar["fill"] for bar in bars]
    assert len({(key["x"], key["y"]) for key in legend}) == len(found)
    assert max(int(key["y"]) for key in legend) + 12 < min(int(bar["y"]) for bar in bars)


def is_pumped(variant: Variant) -> bool:
    return variant.backend in {"udp", "ipip"} and not variant.is_fast
