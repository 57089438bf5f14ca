"""What was found, as rows of the table that is printed in the end. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from kersey_control.cli.text import table


@dataclass(frozen=True, slots=True)
class Row:
    """One check of one thing. `figures` are for programs: numbers by name, with the unit in it."""

    check: str
    where: str
    ok: bool
    result: str
    figures: Mapping[str, float] = field(default_factory=dict)


def as_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table, and of what it comes to."""
    cells = [(row.check, row.where, "ok" if row.ok else "FAILED", row.result) for row in rows]
    yield from table(("CHECK", "WHERE", "", "RESULT"), cells)
    failed = sum(not row.ok for row in rows)
    yield f"{failed} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks passed"


def as_json(rows: Sequence[Row]) -> str:
    """Return one JSON object on one line."""
    return json.dumps({"ok": all(row.ok for row in rows), "rows": [asdict(row) for row in rows]})
