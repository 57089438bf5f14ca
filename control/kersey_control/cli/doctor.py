"""`kersey doctor`: what keeps packets from arriving on this node, and the command that mends it."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from kersey_control.cli.schema import DoctorFlags
from kersey_control.cli.text import print_json
from kersey_control.doctor.examination import Result, checks, examine, worst
from kersey_control.doctor.finding import Finding, Severity
from kersey_control.doctor.host import Host
from kersey_control.node_view import NodeView, view_node
from kersey_control.subnets.etcd_options import EtcdOptions

STATUSES = {None: 0, Severity.NOTE: 0, Severity.WARNING: 3, Severity.ERROR: 4}
"""The exit status by the worst finding."""

_WIDTH = 100
_INDENT = " " * 11


def run(flags: DoctorFlags) -> int:
    """Make all checks, print what they found, and return the exit status."""
    view = view_node(flags)
    every = checks(view, Host(), EtcdOptions.from_flags(flags), probe=flags.probe)
    results = list(examine(every))
    if flags.json:
        print_json(_json(results))
    else:
        for line in (_title(view), *_lines(results)):
            print(line)
    return STATUSES[worst(results)]


def _title(view: NodeView) -> str:
    daemon = f"kerseyd {view.told.version}" if view.told else "no kerseyd"
    at = f" at {view.address}" if view.address else ""
    subnet = f", {view.subnet} of {view.network}" if view.subnet else ""
    backend = f", {view.backend}" if view.backend else ""
    return f"{daemon}{at}{subnet}{backend}"


def _lines(results: list[Result]) -> Iterator[str]:
    """Yield the findings, the worst first, and a line that sums up."""
    pairs = [(result.name, each) for result in results for each in result.findings]
    for name, each in sorted(pairs, key=lambda pair: -pair[1].severity):
        yield from _finding(name, each)
    counts = [
        f"{number} {severity.name.lower()}{'s' if number != 1 else ''}"
        for severity in sorted(Severity, reverse=True)
        if (number := sum(each.severity is severity for _, each in pairs))
    ]
    fine = [result.name for result in results if not result.findings]
    yield f"{', '.join(counts) or 'no findings'}; in order: {', '.join(fine) or 'nothing'}"


def _finding(name: str, each: Finding) -> Iterator[str]:
    yield f"{each.severity.name.lower():10} {name}: {each.what}"
    yield from _wrapped("", each.why)
    yield from _wrapped("fix: ", each.cure)


def _wrapped(label: str, text: str) -> Iterable[str]:
    # Commands are to be copied: only lines of words are broken.
    if label:
        return [f"{_INDENT}{label}{text}"]
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _json(results: list[Result]) -> dict[str, Any]:
    found = worst(results)
    return {
        "worst": None if found is None else found.name.lower(),
        "findings": [
            {
                "check": result.name,
                "severity": each.severity.name.lower(),
                "what": each.what,
                "why": each.why,
                "fix": each.cure,
            }
            for result in results
            for each in result.findings
        ],
        "fine": [result.name for result in results if not result.findings],
    }
