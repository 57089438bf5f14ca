"""Print a manual page of Kersey, made from the tables that --help is made from.

Arguments: kersey or kerseyd, and the day in ISO form. Format: man(7).
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from kersey_control import __version__
from kersey_control.cli import COMMANDS
from kersey_control.flags import Flag, flags_of
from kersey_control.options import Options

_DAEMON = """\
kerseyd connects the pods of this node with those of all other nodes of a flannel-compatible
network. It leases a subnet for the node in etcd, or has one from Kubernetes, and keeps the
kernel's devices, routes and rules, and the programs of the fast path, equal to what the leases
say. What it set up goes on forwarding when it ends, and is adopted when it starts again.
"""
_SIGNS = """\
Write --flag=value or --flag value; a flag without a value is a switch, turned off by --flag=false.
Each can be given as an environment variable: KERSEY_ and the flag's name in capitals with _ for -;
flannel's flags also behind FLANNELD_. The command line wins. The service reads the variables from
/etc/default/kersey.
"""
_COMMAND = """\
kersey shows what this node of a Kersey network does and why, and finds what is wrong. Tables are
for people, --json is for programs. Most commands need root.
"""
_STATUSES = {
    "kersey": {
        0: "done",
        1: "failed, with the reason on standard error",
        2: "wrong command line",
    },
    "kerseyd": {
        0: "ended by SIGINT or SIGTERM",
        1: "a fault that no waiting mends",
        2: "wrong command line",
    },
}
_FILES = {
    "/etc/default/kersey": "options of the service",
    "/run/flannel/subnet.env": "this node's subnet and MTU, for CNI plugins",
    "/run/kersey": "the daemon's socket and state",
    "/sys/fs/bpf/kersey": "programs and maps of the fast path",
    "/var/cache/kersey": "compiled programs, for the next boot",
    "/usr/share/doc/kersey": "guides: OPERATIONS.md, INSTALL.md, COMPATIBILITY.md, ...; in examples"
    " Prometheus' rules and Grafana's dashboard",
}


def text(words: str) -> str:
    """Return plain words as man(7) reads them."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", escaped).strip()


def entries(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of terms, in bold, with what each means."""
    for term, meaning in pairs:
        yield f".TP\n.B {text(term)}\n{text(meaning)}"


def flag_entries(flags: Iterable[Flag]) -> Iterator[str]:
    """Yield a list of flags with their defaults."""
    for flag in flags:
        value = "" if flag.is_switch else f" {flag.row.kind.placeholder}"
        default = flag.row.default if flag.row.default not in {"", "false"} else ""
        note = f" (default {default})" if default else ""
        yield from entries([(flag.dashed + value, flag.row.help + note)])


def by_group(flags: Iterable[Flag]) -> Mapping[str, list[Flag]]:
    """Return flags by the group that they are listed in, in the table's order."""
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        groups.setdefault(flag.row.group, []).append(flag)
    return groups


def daemon() -> Iterator[str]:
    """Yield the parts of kerseyd(8)."""
    yield ".SH NAME\nkerseyd \\- the node daemon of a container overlay network"
    yield ".SH SYNOPSIS\n.B kerseyd\n[flags]"
    yield f".SH DESCRIPTION\n{text(_DAEMON)}"
    yield f".SH OPTIONS\n{text(_SIGNS)}"
    for group, flags in by_group(flags_of(Options)).items():
        yield f".SS {text(group)}"
        yield from flag_entries(flags)


def command() -> Iterator[str]:
    """Yield the parts of kersey(1)."""
    yield ".SH NAME\nkersey \\- look into a node of a container overlay network"
    yield ".SH SYNOPSIS\n.B kersey\nCOMMAND [flags]"
    yield f".SH DESCRIPTION\n{text(_COMMAND)}"
    yield ".SH COMMANDS"
    for name, each in COMMANDS.items():
        yield f".SS {text(' '.join(['kersey', name, *each.arguments]))}"
        yield text(f"{each.summary[0].upper()}{each.summary[1:]}. {each.details}")
        yield from flag_entries(flags_of(each.schema))
        yield from entries((f"exit status {n}", what) for n, what in each.statuses.items())


PAGES: Mapping[str, tuple[int, Callable[[], Iterator[str]], str]] = {
    "kersey": (1, command, "kerseyd(8)"),
    "kerseyd": (8, daemon, "kersey(1)"),
}


def page(name: str, day: str) -> str:
    """Return the whole page."""
    section, parts, other = PAGES[name]
    return "\n".join(
        [
            f'.TH {name.upper()} {section} "{day}" "kersey {__version__}"',
            *parts(),
            ".SH EXIT STATUS",
            *entries((str(number), meaning) for number, meaning in _STATUSES[name].items()),
            ".SH FILES",
            *entries(_FILES.items()),
            ".SH SEE ALSO",
            f".BR {other.replace('(', ' (')}\n",
        ]
    )


if __name__ == "__main__":
    print(page(sys.argv[1], sys.argv[2]), end="")
