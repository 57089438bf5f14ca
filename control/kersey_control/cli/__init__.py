"""kersey, the operator's command. Tables for people, --json for programs.

Exit status: 0 done, 1 failed, 2 bad command line; `doctor` adds 3 (something should be looked at)
and 4 (something keeps packets from arriving). What needs no running daemon works without one.
"""

import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from kersey_control.cli.command import FROM_COMMAND_LINE, Command
from kersey_control.cli.commands import COMMANDS
from kersey_control.errors import InvalidInputError, KerseyError
from kersey_control.flags import (
    HelpRequestedError,
    UsageError,
    flags_of,
    format_help,
    parse_flags,
)

__all__ = ["COMMANDS", "main", "run"]

_HELP = frozenset({"-h", "-help", "--help", "help"})


def main() -> None:
    """Run one command by the command line and the environment, and exit."""
    try:
        status = run(sys.argv[1:], os.environ)
        sys.stdout.flush()
    except (UsageError, InvalidInputError) as error:
        print(f"kersey: {error}", file=sys.stderr)
        status = 2
    except KerseyError as error:
        print(f"kersey: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130  # as a shell reports SIGINT
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Carry out one command line and return the exit status.

    Raises UsageError, InvalidInputError or another KerseyError.
    """
    words = list(argv) or ["--help"]
    if words[0] in _HELP:
        print(_help())
        return 0
    begun = _begun_by(words[0])
    if begun and words[1:2] and words[1] in _HELP:
        print("\n".join(_help_of(name, COMMANDS[name]) for name in begun), end="")
        return 0
    name = _name_in(words)
    return _run_command(name, COMMANDS[name], words[len(name.split()) :], environ)


def _name_in(words: Sequence[str]) -> str:
    """Return the command, of one word or two, that a command line begins with."""
    for name in (" ".join(words[:2]), words[0]):
        if name in COMMANDS:
            return name
    begun = _begun_by(words[0])
    got = " ".join(words[: 2 if begun else 1])
    raise UsageError(f"command: got {got!r}, expected one of {', '.join(begun or COMMANDS)}")


def _begun_by(word: str) -> list[str]:
    """Return the commands of two words that begin with this one."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def _run_command(
    name: str, command: Command[Any], words: Sequence[str], environ: Mapping[str, str]
) -> int:
    flags, arguments = _sort(command, words)
    try:
        parsed = parse_flags(command.schema, flags, _settings(command, environ))
    except HelpRequestedError:
        print(_help_of(name, command), end="")
        return 0
    if len(arguments) > len(command.arguments):
        extra = arguments[len(command.arguments)]
        raise UsageError(f"argument: got {extra!r}, expected nothing more")
    if len(arguments) < len(command.arguments):
        raise UsageError(f"kersey {name}: {command.arguments[len(arguments)]} is missing")
    return command.run(parsed.values, arguments)


def _sort(command: Command[Any], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return flags with their values, and arguments: here either may stand before the other."""
    switches = {entry.name for entry in flags_of(command.schema) if entry.is_switch}
    flags: list[str] = []
    arguments: list[str] = []
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        if word == "--":
            arguments += waiting
            break
        if len(word) < len("-x") or not word.startswith("-"):
            arguments.append(word)
            continue
        flags.append(word)
        name = word.lstrip("-")
        stands_alone = "=" in word or name in switches or f"-{name}" in _HELP
        if waiting and not stands_alone:
            flags.append(waiting.popleft())
    return flags, arguments


def _settings(command: Command[Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say where things are; what to show is asked on the command line.

    Kubernetes sets KERSEY_PORT=tcp://... in the pods beside a service called kersey.
    """
    return {
        name: environ[name]
        for entry in flags_of(command.schema)
        if entry.row.group not in FROM_COMMAND_LINE
        for name in entry.variables
        if name in environ
    }


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: kersey COMMAND [flags]",
            "",
            *lines,
            "",
            "kersey COMMAND --help lists its flags.",
            "",
            _statuses({}),
        ]
    )


def _help_of(name: str, command: Command[Any]) -> str:
    usage = " ".join(["kersey", name, *command.arguments, "[flags]"])
    parts = [f"Usage: {usage}", command.summary, command.details]
    flags = format_help(flags_of(command.schema)).rstrip()
    parts += [flags, _statuses(command.statuses)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _statuses(more: Mapping[int, str]) -> str:
    statuses = {0: "done", 1: "failed, with the reason on stderr", 2: "bad command line", **more}
    lines = [f"  {number}  {meaning}" for number, meaning in sorted(statuses.items())]
    return "\n".join(["Exit status:", *lines])
