"""Command-line flags in Go's syntax, read into a dataclass whose fields are the table of flags.

Promises: `-x`, `--x`, `-x=v`, `--x v` as Go's flag package reads them (a boolean never takes the
next argument; the first argument that is no flag, or `--`, ends the flags; of several the last one
counts unless the flag is repeatable), and the same flags from the environment. Pure: it never
prints, exits or reads the process's own arguments.

An environment variable is the flag's name in capitals with `_` for `-`, behind `KERSEY_`, or, for
the flags that flannel has too, also behind `FLANNELD_`. The command line wins over `KERSEY_`, which
wins over `FLANNELD_`; an empty variable counts as unset. A value that does not fit is refused
wherever it stands; flannel only logs one from the environment and runs with the default, which
hides the mistake.
"""

import difflib
import re
import shutil
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kersey_control.errors import InvalidInputError, KerseyError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
_Schema = TypeVar("_Schema", bound="DataclassInstance")
_ROW = "flag"
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0|[1-9][0-9]*)")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class UsageError(KerseyError):
    """Refuse a command line as a whole: an unknown flag, a missing value, a contradiction."""


class HelpRequestedError(KerseyError):
    """Report that the command line asks for help; everything behind that flag is unread."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[_T]):
    """A type of flag: its parser (ValueError for a misfit), the rule in words, a word for help.

    `words` are the values that there are, where the placeholder does not list them.
    """

    parse: Callable[[str], _T]
    expected: str
    placeholder: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    """What the table says of one flag; its name comes from the field that holds the row."""

    kind: Kind[Any]
    default: str
    group: str
    help: str
    own: bool
    name: str
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of the table: the flag as it is written, and the field that its value goes to."""

    name: str
    field: str
    row: _Row

    @property
    def variables(self) -> tuple[str, ...]:
        """Return the environment variables that set this flag, the strongest first."""
        name = self.name.upper().replace("-", "_")
        return (f"KERSEY_{name}",) if self.row.own else (f"KERSEY_{name}", f"FLANNELD_{name}")

    @property
    def dashed(self) -> str:
        """Return the flag as messages and help show it."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return self.row.kind is BOOLEAN


@dataclass(frozen=True, slots=True)
class Parsed(Generic[_T]):
    """The values, and the arguments behind the last flag."""

    values: _T
    rest: tuple[str, ...]


def flag(
    kind: Kind[_T],
    *,
    default: str,
    group: str,
    help: str,  # noqa: A002  # the usual word
    own: bool = False,
    name: str = "",
    secret: bool = False,
) -> _T:
    """Declare a dataclass field as a flag; `own` ones are not flannel's, a secret has no repr."""
    row = _Row(kind, default, group, help, own, name)
    return field(default=kind.parse(default), repr=not secret, metadata={_ROW: row})


def repeatable_flag(
    kind: Kind[_T],
    *,
    group: str,
    help: str,  # noqa: A002  # the usual word
    own: bool = False,
) -> tuple[_T, ...]:
    """Declare a field that gathers each value given, in order; the environment gives only one."""
    row = _Row(kind, "", group, help, own=own, name="", repeatable=True)
    return field(default=(), metadata={_ROW: row})


def flags_of(schema: type["DataclassInstance"]) -> tuple[Flag, ...]:
    """Return the table of flags that a dataclass declares, in its order."""
    return tuple(
        Flag(row.name or entry.name.replace("_", "-"), entry.name, row)
        for entry in fields(schema)
        if (row := entry.metadata.get(_ROW)) is not None
    )


def parse_flags(
    schema: type[_Schema], argv: Sequence[str], environ: Mapping[str, str]
) -> Parsed[_Schema]:
    """Return `schema` filled from `argv` (without the program's name) and `environ`.

    Raises UsageError, InvalidInputError naming the flag or the variable, or HelpRequestedError.
    """
    table = {entry.name: entry for entry in flags_of(schema)}
    arguments = deque(argv)
    values: dict[str, Any] = {}
    for entry, text in _take_flags(table, arguments):
        _store(values, entry, text, source=entry.dashed)
    given = frozenset(values)
    for entry in table.values():
        variable = next((name for name in entry.variables if environ.get(name)), None)
        if variable is not None and entry.field not in given:
            _store(values, entry, environ[variable], source=variable)
    return Parsed(schema(**values), tuple(arguments))


def _take_flags(table: Mapping[str, Flag], arguments: deque[str]) -> Iterator[tuple[Flag, str]]:
    """Take flags and their values from the front of `arguments`, up to where Go stops."""
    while arguments and len(arguments[0]) > 1 and arguments[0].startswith("-"):
        argument = arguments.popleft()
        if argument == "--":
            return
        name, has_value, text = argument.removeprefix("-").removeprefix("-").partition("=")
        entry = _find(table, name, argument)
        if not has_value:
            text = _value_behind(entry, arguments)
        yield entry, text


def _find(table: Mapping[str, Flag], name: str, argument: str) -> Flag:
    if not name or name.startswith("-"):
        raise UsageError(f"{argument}: expected a flag, written --name or --name=value")
    if name in table:
        return table[name]
    if name in {"h", "help"}:
        raise HelpRequestedError
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {table[near[0]].dashed}?" if near else ""
    raise UsageError(f"--{name}: there is no such flag{hint}")


def _value_behind(entry: Flag, arguments: deque[str]) -> str:
    if entry.is_switch:
        return "true"
    if not arguments:
        raise UsageError(f"{entry.dashed}: needs a value, {entry.row.kind.expected}")
    return arguments.popleft()


def _store(values: dict[str, Any], entry: Flag, text: str, *, source: str) -> None:
    kind = entry.row.kind
    if entry.row.repeatable and not text:
        values.setdefault(entry.field, ())  # flannel takes an empty --iface for none
        return
    try:
        value = kind.parse(text)
    except ValueError:
        raise InvalidInputError(field=source, value=text, expected=kind.expected) from None
    if entry.row.repeatable:
        value = (*values.get(entry.field, ()), value)
    values[entry.field] = value


def format_help(flags: Iterable[Flag], *, width: int | None = None) -> str:
    """Return the table as text, grouped in the table's order; own flags carry a `+` in front."""
    width = width or min(shutil.get_terminal_size().columns, 100)
    groups: dict[str, list[str]] = {}
    for entry in flags:
        groups.setdefault(entry.row.group, []).append(_help_of(entry, width))
    return "\n".join(f"{name}:\n{''.join(rows)}" for name, rows in groups.items())


def _help_of(entry: Flag, width: int) -> str:
    row = entry.row
    mark = "+" if row.own else " "
    left = f"{mark} {entry.dashed}" + ("" if entry.is_switch else f" {row.kind.placeholder}")
    notes = [f"default {row.default}"] if row.default and row.default != "false" else []
    if row.repeatable:
        notes.append("may be repeated")
    text = row.help + (f" ({', '.join(notes)})" if notes else "")
    indent = " " * 34
    # What does not fit beside the flag starts on the line below it.
    first = left.ljust(34) if len(left) < len(indent) else f"{left}\n{indent}"
    lines = textwrap.wrap(text, max(width - 34, 30), break_on_hyphens=False)
    return first + f"\n{indent}".join(lines) + "\n"


def _boolean(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _integer(text: str) -> int:
    """Read an integer as Go reads a literal: 0x, 0o, 0b, and 0 for octal."""
    if not _INTEGER.fullmatch(text):
        raise ValueError
    digits = text.lstrip("+-")
    base = 8 if digits.isdigit() and digits.startswith("0") else 0
    return int(text, base)


def integer(low: int, high: int, *, placeholder: str = "N") -> Kind[int]:
    """Return the kind of integers from `low` to `high`."""

    def parse(text: str) -> int:
        value = _integer(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(parse, f"an integer from {low} to {high}", placeholder)


BOOLEAN = Kind(_boolean, "true or false, written --flag or --flag=false", "")
