"""What a subcommand is, and the flags that several of them share. The table is in `commands`.

The classes of flags that are combined have no slots: Python joins one layout with slots at most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from kersey_control.flags import BOOLEAN, flag
from kersey_control.options import PATH

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # exists only for type checkers

_Flags = TypeVar("_Flags", bound="DataclassInstance")

OUTPUT = "Output"
SELECTION = "Selection"
PACKET = "Packet"
FILES = "Files (as the daemon was told)"

FROM_COMMAND_LINE = frozenset({OUTPUT, SELECTION, PACKET})
"""Groups of flags that no environment variable sets."""


@dataclass(frozen=True, slots=True)
class Command(Generic[_Flags]):
    """One subcommand: what it is for, its flags and arguments, and what carries it out.

    `run` takes the flags and as many arguments as are named, and returns the exit status. `choices`
    are the words that the first argument can be, for completion.
    """

    summary: str
    schema: type[_Flags]
    run: Callable[[_Flags, Sequence[str]], int]
    arguments: tuple[str, ...] = ()
    details: str = ""
    statuses: Mapping[int, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFlags:
    """A command without flags."""


@dataclass(frozen=True, kw_only=True)
class JsonFlag:
    """The choice between a table and JSON."""

    json: bool = flag(BOOLEAN, default="false", group=OUTPUT, help="print JSON", own=True)


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """Where the daemon's files are: what every command on this node's own state needs."""

    subnet_file: Path = flag(
        PATH, default="/run/flannel/subnet.env", group=FILES, help="the daemon's --subnet-file"
    )
    state_dir: Path = flag(
        PATH, default="/run/kersey", group=FILES, help="the daemon's --state-dir", own=True
    )
    bpf_dir: Path = flag(
        PATH, default="/sys/fs/bpf/kersey", group=FILES, help="the daemon's --bpf-dir", own=True
    )


@dataclass(frozen=True, kw_only=True)
class NodeFlags(JsonFlag, FileFlags):
    """What a command that shows this node's state can be told."""
