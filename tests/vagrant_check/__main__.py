"""`python -m vagrant_check`, which scripts/vagrant-check runs: all checks, one after the other."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vagrant_check.machine import Machine, MachineError
from vagrant_check.node import Node, ask, ready_row
from vagrant_check.options import Options, read_options
from vagrant_check.reach import reach_row
from vagrant_check.row import Row, as_json, as_table
from vagrant_check.speed import speed_rows
from vagrant_check.traffic import restart_rows, share_rows

_FEWEST = 2
"""Nodes with pods, for anything to go between them."""

Check = tuple[str, str, Callable[[Sequence[Node]], list[Row]]]


def checks(options: Options) -> list[Check]:
    """Return the checks in their order: name, what is said before it, what does it."""
    return [
        ("reach", "every pod pings every other one", lambda nodes: [reach_row(nodes)]),
        (
            "fast path",
            "pods exchange datagrams",
            lambda nodes: share_rows(nodes, seconds=options.seconds, least=options.least_share),
        ),
        (
            "restart",
            "all daemons are restarted under traffic",
            lambda nodes: restart_rows(nodes, seconds=options.seconds),
        ),
        ("speed", "one TCP stream", lambda nodes: speed_rows(nodes, seconds=options.seconds)),
    ]


def examine(options: Options) -> list[Row]:
    """Make all checks; one that cannot be made is a failed row, and keeps no other from being."""
    say("asking the machines")
    machines = [Machine(name, options.ssh, options.timeout) for name in options.machines]
    rows: list[Row] = []
    nodes: list[Node] = []
    with ThreadPoolExecutor(len(machines)) as pool:
        for machine, answer in zip(machines, pool.map(_asked, machines), strict=True):
            if isinstance(answer, Node):
                nodes.append(answer)
                rows.append(ready_row(answer, nodes=len(machines)))
            else:
                rows.append(Row("ready", machine.name, ok=False, result=answer))
    if sum(bool(node.pods) for node in nodes) < _FEWEST:
        return rows
    for name, what, check in checks(options):
        if any(row.check == "reach" and not row.ok for row in rows):
            break  # loads between pods that do not reach each other tell nothing
        say(what)
        try:
            rows += check(nodes)
        except MachineError as error:
            rows.append(Row(name, "all", ok=False, result=str(error)))
    return rows


def _asked(machine: Machine) -> Node | str:
    try:
        return ask(machine)
    except MachineError as error:
        return str(error)


def say(what: str) -> None:
    """Tell a person that it goes on."""
    print(f"vagrant-check: {what}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run it; 0 if all is well, 1 if not."""
    options = read_options(argv)
    try:
        rows = examine(options)
    except KeyboardInterrupt:
        return 130
    print(as_json(rows) if options.json else "\n".join(as_table(rows)))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
