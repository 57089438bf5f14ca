"""The benchmark's tables, JSON object and plot say what was measured, and mark what is void."""

import json
import xml.etree.ElementTree as ET

from datapath_bench.figures import (
    FlowSize,
    Load,
    Mode,
    ProgramCost,
    Sample,
    Series,
    Table,
    Variant,
)
from datapath_bench.report import Report, as_object, as_svg, as_text

SVG = "{http://www.w3.org/2000/svg}"


def series(variant: Variant, *values: float, fast: float | None = None) -> Series:
    samples = tuple(Sample(value, seconds=1.0, cpu=1.0, fast=fast) for value in values)
    return Series(Mode.PLAIN, Load.UDP_RR, variant, samples)


REPORT = Report(
    setting={"rounds": 3},
    table=Table(
        (
            series(Variant.BARE, 1000, 900, 1100),
            series(Variant.VXLAN, 500, 400, 600),
            series(Variant.STRICT, 800, 700, 900, fast=0.999),
            series(Variant.DIRECT, 850, 850, 850, fast=0.2),
        )
    ),
    programs=(ProgramCost(Load.UDP_RR, "from_pod", runs=12345, nanoseconds=301.6),),
    flows=(FlowSize(1, (70_000.0, 71_000.0, 69_000.0)), FlowSize(1_000_000, (), "not run: small")),
)


def row(name: str) -> list[str]:
    line = next(line for line in as_text(REPORT).splitlines() if line.startswith(f"  {name}"))
    return line.removeprefix(f"  {name}").split(maxsplit=7)


def test_row_has_median_spread_ratios_cpu_time_and_fast_part() -> None:
    assert row("kersey strict") == ["800.0", "700.0", "900.0", "0.80", "1.60", "625000", "99.9%"]


def test_row_that_was_not_fast_says_so() -> None:
    assert row("kersey direct")[-1] == "NOT FAST"


def test_text_has_programs_and_flow_sizes_also_those_not_run() -> None:
    lines = [" ".join(line.split()) for line in as_text(REPORT).splitlines()]

    assert "UDP request/response from_pod 302 ns 12,345 runs" in lines
    assert "1 70,000 round trips/s (69,000..71,000)" in lines
    assert "1,000,000 not run: small" in lines


def test_loads_that_were_not_run_have_no_table() -> None:
    assert Load.TCP_STREAM not in as_text(REPORT)


def test_object_survives_json_with_every_sample_and_ratio() -> None:
    read = json.loads(json.dumps(as_object(REPORT)))
    strict = next(entry for entry in read["series"] if entry["variant"] == "kersey strict")

    assert (strict["median"], strict["min"], strict["max"]) == (800, 700, 900)
    assert (strict["to_bare"], strict["to_vxlan"]) == (0.8, 1.6)
    assert [entry["value"] for entry in strict["samples"]] == [800, 700, 900]
    assert read["not_fast"] == [
        {"mode": "no rules", "load": "UDP request/response", "variant": "kersey direct"}
    ]
    assert read["flow_map"][1]["reason"] == "not run: small"


def test_plot_has_a_bar_as_long_as_its_ratio_for_each_series() -> None:
    plot = ET.fromstring(as_svg(REPORT))  # noqa: S314  # our own text
    widths = [
        int(bar.attrib["width"]) for bar in plot.iter(f"{SVG}rect") if bar.attrib.get("x") == "270"
    ]

    assert [width / widths[0] for width in widths] == [1.0, 0.5, 0.8, 0.85]
