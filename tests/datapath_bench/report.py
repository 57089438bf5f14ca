"""The benchmark's result: a table for people, a JSON object, a plot. Pure: values in, text out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from datapath_bench.figures import (
    BARE,
    Carrier,
    Comparison,
    FlowSize,
    Load,
    Mode,
    ProgramCost,
    Series,
    Table,
    Variant,
)
from datapath_bench.goals import Judgement

_NAME = 19  # the longest: vxlan bpf direct


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found out, and how it was run."""

    setting: Mapping[str, object]
    table: Table
    comparisons: Sequence[Comparison]
    programs: Sequence[ProgramCost] = ()
    flows: Sequence[FlowSize] = ()
    goals: Sequence[Judgement] = ()
    notes: Sequence[str] = ()


def as_text(report: Report) -> str:
    """Return the tables that people read."""
    lines = [", ".join(f"{name} {value}" for name, value in report.setting.items())]
    for mode in Mode:
        lines += _mode_lines(report, mode)
    if report.programs:
        lines += ["", "programs of vxlan bpf, no rules: ns for one run, both nodes"]
    lines += [
        f"  {cost.load:<34}{cost.program:<14}{cost.nanoseconds:7.0f} ns {cost.runs:>10,} runs"
        for cost in report.programs
    ]
    if report.flows:
        lines += ["", f"{Load.TCP_RR} of vxlan bpf, no rules, by entries in the flow map"]
    lines += [f"{size.entries:>12,}  {_flow_text(size)}" for size in report.flows]
    lines += _goal_lines(report.goals)
    lines += [line for note in report.notes for line in ("", note)]
    return "\n".join(lines)


def _mode_lines(report: Report, mode: Mode) -> Iterator[str]:
    for load in Load:
        found = _measured(report.table, mode, load)
        if found:
            yield from ("", f"{load}, {mode} ({load.unit})", _head(report.comparisons))
            yield from (_row(report, series) for series in found)


def _measured(table: Table, mode: Mode, load: Load) -> list[Series]:
    """Return every variant's series, in the order of the variants."""
    found = (table.find(mode, load, variant) for variant in table.variants)
    return [series for series in found if series is not None]


def _head(comparisons: Sequence[Comparison]) -> str:
    ratios = "".join(f"{'/' + comparison.name:>9}" for comparison in comparisons)
    figures = f"{'median':>11}{'min':>11}{'max':>11}"
    return f"{'':<{_NAME}}{figures}{ratios}{'CPU ns/packet':>15}{'fast':>8}  marks"


def _row(report: Report, series: Series) -> str:
    low, high = min(series.values), max(series.values)
    figures = "".join(f"{_number(value):>11}" for value in (series.median, low, high))
    ratios = "".join(
        f"{_ratio(each.ratio(report.table, series)):>9}" for each in report.comparisons
    )
    cpu = "" if series.cpu_per_packet is None else f"{series.cpu_per_packet:.0f}"
    fast = "" if series.fast is None or not series.variant.is_fast else f"{series.fast:.1%}"
    name, marks = f"  {series.variant.name}", ", ".join(series.marks)
    return f"{name:<{_NAME}}{figures}{ratios}{cpu:>15}{fast:>8}  {marks}".rstrip()


def _number(value: float) -> str:
    decimals = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{decimals}f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    decimals = 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"


def _goal_lines(goals: Sequence[Judgement]) -> Iterator[str]:
    if goals:
        yield from ("", "goals: so many times the other's median, at least")
    for goal, ratio, outcome in ((each.goal, each.ratio, each.outcome) for each in goals):
        variants = f"{goal.variant.name} / {goal.base.name}"
        yield f"  {outcome:<11}{_ratio(ratio):>5} of {goal.at_least:<6g}{variants:<30}{goal.load}"


def _flow_text(size: FlowSize) -> str:
    if size.reason:
        return size.reason
    low, high = min(size.values), max(size.values)
    return f"{size.median:,.0f} round trips/s ({low:,.0f}..{high:,.0f})"


def as_object(report: Report) -> dict[str, object]:
    """Return what `--json` prints. Rates per second, times in nanoseconds, parts from 0 to 1."""
    return {
        "setting": dict(report.setting),
        "series": [_series_object(report, series) for series in report.table.series],
        "programs": [
            {"load": cost.load, "program": cost.program, "runs": cost.runs, "ns": cost.nanoseconds}
            for cost in report.programs
        ],
        "flow_map": [
            {"entries": size.entries, "values": list(size.values), "reason": size.reason}
            for size in report.flows
        ],
        "not_fast": [
            {"mode": series.mode, "load": series.load, "variant": series.variant.name}
            for series in report.table.unproven
        ],
        "goals": [_goal_object(judgement) for judgement in report.goals],
        "notes": list(report.notes),
    }


def _goal_object(judgement: Judgement) -> dict[str, object]:
    goal = judgement.goal
    return {
        "load": goal.load,
        "variant": goal.variant.name,
        "base": goal.base.name,
        "at_least": goal.at_least,
        "ratio": judgement.ratio,
        "outcome": judgement.outcome,
    }


def _series_object(report: Report, series: Series) -> dict[str, object]:
    return {
        "mode": series.mode,
        "load": series.load,
        "variant": series.variant.name,
        "unit": series.load.unit,
        "median": series.median,
        "min": min(series.values),
        "max": max(series.values),
        **{f"to_{each.name}": each.ratio(report.table, series) for each in report.comparisons},
        "cpu_ns_per_packet": series.cpu_per_packet,
        "fast": series.fast if series.variant.is_fast else None,
        "marks": series.marks,
        "samples": [
            {"value": s.value, "steal": s.steal, "quiet": s.quiet, "fast": s.fast}
            for s in series.samples
        ],
    }


_COLOURS = {
    ("", Carrier.WIRE): "#bbbbbb",
    # Warm without programs, cold with them.
    ("vxlan", Carrier.KERNEL): "#e08040",
    ("host-gw", Carrier.KERNEL): "#d0c040",
    ("udp", Carrier.PUMP): "#d06070",
    ("ipip", Carrier.KERNEL): "#a08050",
    ("ipip", Carrier.PUMP): "#a08050",
    ("vxlan", Carrier.BPF): "#3070b0",
    ("vxlan", Carrier.BPF_DIRECT): "#60b0e0",
    ("host-gw", Carrier.BPF): "#308060",
    ("udp", Carrier.BPF): "#7050b0",
    ("ipip", Carrier.BPF): "#30a0a0",
}
_LEFT, _TOP, _BAR, _GAP, _SCALE, _WIDTH = 270, 50, 14, 14, 340, 760
_LEGEND_ROW, _LEGEND_COLUMNS = 18, 5


def as_svg(report: Report) -> str:
    """Return a plot of all ratios to bare node-to-node, a group of bars for each load."""
    variants = report.table.variants
    body: list[str] = list(_legend(variants))
    first = top = _TOP + _LEGEND_ROW * ((len(variants) - 1) // _LEGEND_COLUMNS)
    for mode in Mode:
        for load in Load:
            group = list(_bars(report.table, mode, load, top=top))
            if group:
                body += group
                top += _BAR * (len(group) - 1) // 2 + _GAP
    line = _LEFT + _SCALE
    body.append(f'<path d="M{line} {first - 6}V{top}" stroke="#444" stroke-dasharray="3 3"/>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _GAP}"'
        ' font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


def _colour(variant: Variant) -> str:
    return _COLOURS[variant.backend, variant.carrier]


def _legend(variants: Sequence[Variant]) -> Iterator[str]:
    yield f'<text x="8" y="16">median relative to {BARE.name} node-to-node (dashed: 1.0)</text>'
    for number, variant in enumerate(variants):
        row, column = divmod(number, _LEGEND_COLUMNS)
        left, top = 8 + 130 * column, 24 + _LEGEND_ROW * row
        yield f'<rect x="{left}" y="{top}" width="12" height="12" fill="{_colour(variant)}"/>'
        yield f'<text x="{left + 16}" y="{top + 10}">{escape(variant.name)}</text>'


def _bars(table: Table, mode: Mode, load: Load, *, top: int) -> Iterator[str]:
    """Yield one label, and two elements for each bar; nothing for a load without a bare figure."""
    ratios = [
        (series.variant, ratio)
        for series in _measured(table, mode, load)
        if (ratio := table.ratio(series, BARE)) is not None
    ]
    if not ratios:
        return
    yield f'<text x="8" y="{top + _BAR - 3}">{escape(load)}, {mode}</text>'
    for number, (variant, ratio) in enumerate(ratios):
        edge, width = top + _BAR * number, round(_SCALE * ratio)
        place = f'x="{_LEFT}" y="{edge}" width="{width}" height="{_BAR - 2}"'
        yield f'<rect {place} fill="{_colour(variant)}"/>'
        yield f'<text x="{_LEFT + width + 4}" y="{edge + _BAR - 4}">{_ratio(ratio)}</text>'
