"""Values as people read them: tables, counts, bytes and times. Pure."""

import json
from collections.abc import Iterator, Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP = 1000
_DIGITS = 100


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table's lines, each column as wide as its widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        yield row(line, widths)


def row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one line of a table; a cell that is too wide moves those behind it."""
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value))


def remaining(seconds: float | None) -> str:
    """Return a time to go in words; None is without end."""
    if seconds is None:
        return "never"
    hours, rest = divmod(max(0, round(seconds)), 3600)
    return f"in {hours} h {rest // 60:02d} min"


def age(seconds: float | None) -> str:
    """Return a time that has passed; None is never."""
    return "-" if seconds is None else f"{seconds:.1f} s"


def amount(size: float) -> str:
    """Return a number of bytes in the largest unit that leaves a digit before the point."""
    unit = 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size /= _STEP
        unit += 1
    digits = 0 if unit == 0 or size >= _DIGITS else 1
    return f"{size:.{digits}f} {_UNITS[unit]}"
