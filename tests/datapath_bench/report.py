"""The benchmark's result: a table for people, a JSON object, a plot. Pure: values in, text out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from datapath_bench.figures import (
    FlowSize,
    Load,
    Mode,
    ProgramCost,
    Series,
    Table,
    Variant,
)

_HEAD = (
    f"{'':<16}{'median':>11}{'min':>11}{'max':>11}{'/bare':>8}{'/vxlan':>8}"
    f"{'CPU ns/packet':>15}{'fast':>8}  marks"
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found out, and how it was run."""

    setting: Mapping[str, object]
    table: Table
    programs: Sequence[ProgramCost]
    flows: Sequence[FlowSize]


def as_text(report: Report) -> str:
    """Return the tables that people read."""
    lines = [", ".join(f"{name} {value}" for name, value in report.setting.items())]
    for mode in Mode:
        lines += _mode_lines(report.table, mode)
    lines += ["", "programs of kersey strict, no rules: ns for one run, both nodes"]
    lines += [
        f"  {cost.load:<34}{cost.program:<14}{cost.nanoseconds:7.0f} ns {cost.runs:>10,} runs"
        for cost in report.programs
    ]
    lines += ["", f"{Load.TCP_RR} of kersey strict, no rules, by entries in the flow map"]
    lines += [f"{size.entries:>12,}  {_flow_text(size)}" for size in report.flows]
    return "\n".join(lines)


def _mode_lines(table: Table, mode: Mode) -> Iterator[str]:
    for load in Load:
        found = [
            series for variant in Variant if (series := table.find(mode, load, variant)) is not None
        ]
        if found:
            yield from ("", f"{load}, {mode} ({load.unit})", _HEAD)
            yield from (_row(table, series) for series in found)


def _row(table: Table, series: Series) -> str:
    low, high = min(series.values), max(series.values)
    figures = "".join(f"{_number(value):>11}" for value in (series.median, low, high))
    bare = _ratio(table.ratio(series, Variant.BARE))
    vxlan = _ratio(table.ratio(series, Variant.VXLAN))
    cpu = "" if series.cpu_per_packet is None else f"{series.cpu_per_packet:.0f}"
    fast = "" if series.fast is None or not series.variant.is_fast else f"{series.fast:.1%}"
    marks = ", ".join(series.marks)
    row = f"  {series.variant:<14}{figures}{bare:>8}{vxlan:>8}{cpu:>15}{fast:>8}  {marks}"
    return row.rstrip()


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _flow_text(size: FlowSize) -> str:
    if size.reason:
        return size.reason
    low, high = min(size.values), max(size.values)
    return f"{size.median:,.0f} round trips/s ({low:,.0f}..{high:,.0f})"


def as_object(report: Report) -> dict[str, object]:
    """Return what `--json` prints. Rates per second, times in nanoseconds, parts from 0 to 1."""
    return {
        "setting": dict(report.setting),
        "series": [_series_object(report.table, series) for series in report.table.series],
        "programs": [
            {"load": cost.load, "program": cost.program, "runs": cost.runs, "ns": cost.nanoseconds}
            for cost in report.programs
        ],
        "flow_map": [
            {"entries": size.entries, "values": list(size.values), "reason": size.reason}
            for size in report.flows
        ],
        "not_fast": [
            {"mode": series.mode, "load": series.load, "variant": series.variant}
            for series in report.table.unproven
        ],
    }


def _series_object(table: Table, series: Series) -> dict[str, object]:
    return {
        "mode": series.mode,
        "load": series.load,
        "variant": series.variant,
        "unit": series.load.unit,
        "median": series.median,
        "min": min(series.values),
        "max": max(series.values),
        "to_bare": table.ratio(series, Variant.BARE),
        "to_vxlan": table.ratio(series, Variant.VXLAN),
        "cpu_ns_per_packet": series.cpu_per_packet,
        "fast": series.fast if series.variant.is_fast else None,
        "marks": series.marks,
        "samples": [
            {"value": s.value, "steal": s.steal, "quiet": s.quiet, "fast": s.fast}
            for s in series.samples
        ],
    }


_COLOURS = {
    Variant.BARE: "#bbbbbb",
    Variant.VXLAN: "#e08040",
    Variant.HOST_GW: "#d0c040",
    Variant.STRICT: "#3070b0",
    Variant.DIRECT: "#60b0e0",
}
_LEFT, _TOP, _BAR, _GAP, _SCALE, _WIDTH = 270, 50, 14, 14, 340, 760


def as_svg(report: Report) -> str:
    """Return a plot of all medians relative to bare node-to-node, a group of bars for each load."""
    body: list[str] = list(_legend())
    top = _TOP
    for mode in Mode:
        for load in Load:
            group = list(_bars(report.table, mode, load, top=top))
            if group:
                body += group
                top += _BAR * (len(group) - 1) // 2 + _GAP
    line = _LEFT + _SCALE
    body.append(f'<path d="M{line} {_TOP - 6}V{top}" stroke="#444" stroke-dasharray="3 3"/>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _GAP}"'
        ' font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


def _legend() -> Iterator[str]:
    yield f'<text x="8" y="16">median relative to {Variant.BARE} node-to-node (dashed: 1.0)</text>'
    for number, (variant, colour) in enumerate(_COLOURS.items()):
        left = 8 + 130 * number
        yield f'<rect x="{left}" y="24" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{left + 16}" y="34">{escape(variant)}</text>'


def _bars(table: Table, mode: Mode, load: Load, *, top: int) -> Iterator[str]:
    """Yield one label, and two elements for each bar; nothing for a load without a bare figure."""
    found = [(variant, table.find(mode, load, variant)) for variant in Variant]
    ratios = [
        (variant, ratio)
        for variant, series in found
        if series is not None and (ratio := table.ratio(series, Variant.BARE)) is not None
    ]
    if not ratios:
        return
    yield f'<text x="8" y="{top + _BAR - 3}">{escape(load)}, {mode}</text>'
    for number, (variant, ratio) in enumerate(ratios):
        edge, width = top + _BAR * number, round(_SCALE * ratio)
        place = f'x="{_LEFT}" y="{edge}" width="{width}" height="{_BAR - 2}"'
        yield f'<rect {place} fill="{_COLOURS[variant]}"/>'
        yield f'<text x="{_LEFT + width + 4}" y="{edge + _BAR - 4}">{ratio:.2f}</text>'
