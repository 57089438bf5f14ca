"""What a run found, as the table that is printed in the end. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kersey_control.cli.text import table
from vagrant_check.row import Row


@dataclass(frozen=True, slots=True)
class Finding:
    """The rows of one step: what the network was, and how many seconds the step took."""

    setting: str
    seconds: float
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether the step was made and all went well."""
        return bool(self.rows) and all(row.ok for row in self.rows)


def as_lines(kernel: str, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of the table. A step's time stands in the first of its lines."""
    cells = [
        (
            finding.setting if row is finding.rows[0] else "",
            f"{finding.seconds:.0f} s" if row is finding.rows[0] else "",
            row.check,
            row.where,
            "ok" if row.ok else "FAILED",
            row.result,
        )
        for finding in findings
        for row in finding.rows
    ]
    yield f"kernel {kernel}"
    yield from table(("STEP", "TIME", "CHECK", "WHERE", "", "RESULT"), cells)
    failed = sum(not finding.ok for finding in findings)
    yield (
        f"{failed} of {len(findings)} steps failed"
        if failed
        else f"all {len(findings)} steps passed"
    )
