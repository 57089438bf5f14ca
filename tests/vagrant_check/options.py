"""The command line of `scripts/vagrant-check`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DESCRIPTION = """\
Try a network of machines that deploy/vagrant/provision has made nodes: does every pod reach every
other one, which part of their packets takes the fast path, what is lost while the daemons restart,
and how fast is it. Prints a table. Exit status: 0 all is well, 1 something failed, 2 wrong call."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator asked for; seconds and shares (0 to 1)."""

    machines: tuple[str, ...]
    ssh: str
    seconds: float
    least_share: float
    timeout: float
    json: bool


def read_options(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Return the options; print and exit on --help and on a wrong call."""
    parser = argparse.ArgumentParser(prog="scripts/vagrant-check", description=_DESCRIPTION)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "machines",
        nargs="*",
        metavar="MACHINE",
        help="names of at least two nodes (default: node1 to nodeN, N by KERSEY_NODES or 3)",
    )
    parser.add_argument(
        "--ssh",
        default="vagrant ssh %s -c",
        metavar="PREFIX",
        help="how to run a command on a machine: split like a shell's line, %%s is the machine's"
        " name, the command follows as one argument; root there by sudo (default: '%(default)s')",
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="how long each load lasts (default: %(default)s)"
    )
    parser.add_argument(
        "--least-share",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="least part of packets on the fast path where there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long a single command may take (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    read = parser.parse_args(argv)
    count = int(environ.get("KERSEY_NODES") or 3)
    machines = tuple(read.machines) or tuple(f"node{number}" for number in range(1, count + 1))
    if len(machines) < 2:
        parser.error("expected at least two machines")
    return Options(
        machines=machines,
        ssh=read.ssh,
        seconds=read.seconds,
        least_share=read.least_share,
        timeout=read.timeout,
        json=read.json,
    )
