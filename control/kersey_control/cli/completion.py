"""`kersey completion`: completion scripts made from the table of commands. Pure text."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from kersey_control.cli.command import Command
from kersey_control.errors import InvalidInputError
from kersey_control.flags import Flag, flags_of
from kersey_control.options import PATH

Table = Mapping[str, Command[Any]]

_BASH = """\
# bash completion for kersey; made by `kersey completion bash`
_kersey() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local first=${{COMP_WORDS[1]}} second=${{COMP_WORDS[2]}} words='' files=''
    if [ "$COMP_CWORD" = 1 ]; then
        words={commands}
    else
        case "$COMP_CWORD $first" in
{groups}
        esac
        case "$first $second" in
{cases}
        esac
    fi
    COMPREPLY=()
    if [ -n "$words" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    elif [ -n "$files" ]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}}
complete -o filenames -F _kersey kersey
"""

_ZSH = """\
#compdef kersey
# zsh completion for kersey; made by `kersey completion zsh`
_kersey() {{
    local -a commands
    commands=({commands})
    if (( CURRENT == 2 )); then
        _describe 'command' commands
        return
    fi
    case "$words[2] $words[3]" in
{cases}
    esac
}}
if [ "$funcstack[1]" = _kersey ]; then _kersey "$@"; else compdef _kersey kersey; fi
"""


def run(table: Table, shell: str) -> int:
    """Print the script. Raises InvalidInputError for a shell that has none."""
    scripts = {"bash": bash, "zsh": zsh, "fish": fish}
    if shell not in scripts:
        raise InvalidInputError(field="shell", value=shell, expected=f"one of {', '.join(scripts)}")
    print(scripts[shell](table), end="")
    return 0


def bash(table: Table) -> str:
    """Return the script for bash 4 or later."""
    groups = [
        f'            "2 {group}") words={shlex.quote(" ".join(seconds))} ;;'
        for group, seconds in _groups(table).items()
    ]
    cases = [line for name, command in table.items() for line in _bash_case(name, command)]
    return _BASH.format(
        commands=shlex.quote(" ".join(_first_words(table))),
        groups="\n".join(groups),
        cases="\n".join(cases),
    )


def _bash_case(name: str, command: Command[Any]) -> Iterator[str]:
    """Yield one command's branch: values behind a flag, else its flags and its arguments."""
    flags = flags_of(command.schema)
    words = [*command.choices, *(entry.dashed for entry in flags), "--help"]
    yield f"            {_pattern(name)})"
    yield "                case $previous in"
    for entry in flags:
        if not entry.is_switch:
            values = _values(entry)
            action = "files=yes" if _is_path(entry) else f"words={shlex.quote(' '.join(values))}"
            yield f"                {entry.dashed}) {action} ;;"
    if "FILE" in command.arguments:
        last = f"[[ $current == -* ]] && words={shlex.quote(' '.join(words))} || files=yes"
    else:
        last = f"words={shlex.quote(' '.join(words))}"
    yield f"                *) {last} ;;"
    yield "                esac ;;"


def zsh(table: Table) -> str:
    """Return the script for zsh, for a file `_kersey` in its fpath."""
    commands = " ".join(
        shlex.quote(f"{word}:{_escaped(summary)}") for word, summary in _summaries(table)
    )
    cases = [line for name, command in table.items() for line in _zsh_case(name, command)]
    for group, seconds in _groups(table).items():
        cases.append(f'    "{group} "*) compadd -- {" ".join(seconds)} ;;')
    return _ZSH.format(commands=commands, cases="\n".join(cases))


def _zsh_case(name: str, command: Command[Any]) -> Iterator[str]:
    depth = len(name.split())
    yield f"    {_pattern(name)})"
    yield f"        shift {depth} words; (( CURRENT -= {depth} ))"
    specs = [_zsh_flag(entry) for entry in flags_of(command.schema)]
    specs.append(shlex.quote("--help[show the flags]"))
    for number, argument in enumerate(command.arguments, start=1):
        action = f"({' '.join(command.choices)})" if command.choices else ""
        action = "_files" if argument == "FILE" else action
        specs.append(shlex.quote(f"{number}:{argument}:{action}"))
    yield "        _arguments " + " ".join(specs) + " ;;"


def _zsh_flag(entry: Flag) -> str:
    again = "*" if entry.row.repeatable else ""
    text = f"{again}{entry.dashed}{'' if entry.is_switch else '='}[{_escaped(entry.row.help)}]"
    if not entry.is_switch:
        values = _values(entry)
        text += f":{entry.row.kind.placeholder.replace(':', '')}:"
        text += "_files" if _is_path(entry) else f"({' '.join(values)})"
    return shlex.quote(text)


def fish(table: Table) -> str:
    """Return the script for fish."""
    lines = ["# fish completion for kersey; made by `kersey completion fish`"]
    lines.append("complete -c kersey -f")
    none = "not __fish_seen_subcommand_from " + " ".join(_first_words(table))
    for word, summary in _summaries(table):
        lines.append(_fish(none, f"-a {shlex.quote(word)} -d {shlex.quote(summary)}"))
    for group, seconds in _groups(table).items():
        condition = f"__fish_seen_subcommand_from {group}; and " + _fish_not(seconds)
        lines.append(_fish(condition, f"-a {shlex.quote(' '.join(seconds))}"))
    for name, command in table.items():
        lines += _fish_case(name, command)
    return "\n".join(lines) + "\n"


def _fish_case(name: str, command: Command[Any]) -> Iterator[str]:
    seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
    if command.choices:
        condition = f"{seen}; and {_fish_not(command.choices)}"
        yield _fish(condition, f"-a {shlex.quote(' '.join(command.choices))}")
    if "FILE" in command.arguments:
        yield _fish(seen, "-F")
    for entry in flags_of(command.schema):
        values = _values(entry)
        value = "" if entry.is_switch else " -r -F" if _is_path(entry) else " -x"
        value += f" -a {shlex.quote(' '.join(values))}" if values else ""
        yield _fish(seen, f"-l {entry.name}{value} -d {shlex.quote(entry.row.help)}")


def _fish(condition: str, rest: str) -> str:
    return f"complete -c kersey -n {shlex.quote(condition)} {rest}"


def _fish_not(words: tuple[str, ...] | list[str]) -> str:
    return "not __fish_seen_subcommand_from " + " ".join(words)


def _first_words(table: Table) -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in table))


def _groups(table: Table) -> dict[str, list[str]]:
    """Return the second words of commands of two, by the first."""
    groups: dict[str, list[str]] = {}
    for name in table:
        first, _, second = name.partition(" ")
        if second:
            groups.setdefault(first, []).append(second)
    return groups


def _summaries(table: Table) -> Iterator[tuple[str, str]]:
    groups = _groups(table)
    for word in _first_words(table):
        yield word, table[word].summary if word in table else f"{', '.join(groups[word])} ..."


def _pattern(name: str) -> str:
    """Return the shell pattern of a command's first two words."""
    return f'"{name}"' if " " in name else f'"{name} "*'


def _values(entry: Flag) -> list[str]:
    """Return the words that a flag's value is one of, none if it is free."""
    if entry.row.kind.words:
        return list(entry.row.kind.words)
    words = entry.row.kind.placeholder.split("|")
    return words if len(words) > 1 and all(word.islower() for word in words) else []


def _is_path(entry: Flag) -> bool:
    return entry.row.kind.placeholder == PATH.placeholder


def _escaped(text: str) -> str:
    for character in ("\\", ":", "[", "]"):
        text = text.replace(character, f"\\{character}")
    return text
