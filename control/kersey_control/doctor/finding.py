"""What a check found: in words that an operator can act on. Pure values."""

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad it is; the worst one decides the exit status."""

    NOTE = 0
    """Good to know."""
    WARNING = 1
    """Should be looked at: slow, fragile, or wrong for some packets."""
    ERROR = 2
    """Keeps packets from arriving, or will."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what was seen, why it matters, and the command that mends it.

    `cure` is a shell command, or where no single one does, what to do in words.
    """

    severity: Severity
    what: str
    why: str
    cure: str


def error(what: str, why: str, cure: str) -> Finding:
    """Return a fault that keeps packets from arriving."""
    return Finding(Severity.ERROR, what, why, cure)


def warning(what: str, why: str, cure: str) -> Finding:
    """Return a fault that should be looked at."""
    return Finding(Severity.WARNING, what, why, cure)


def note(what: str, why: str, cure: str) -> Finding:
    """Return something that is good to know."""
    return Finding(Severity.NOTE, what, why, cure)


def listed(names: list[str], most: int = 4) -> str:
    """Return names as a text, the first `most` of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
