"""Does every pod reach every other one: pings of all ordered pairs, from each machine at once."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from statistics import median

from vagrant_check.node import Node, Pod
from vagrant_check.row import Row

_AVERAGE = re.compile(r"= [\d.]+/([\d.]+)/")
_NAMED = 5
"""So many silent pairs are named; the others are counted."""

Pair = tuple[Pod, Pod]


def reach_row(nodes: Sequence[Node]) -> Row:
    """Return how many ordered pairs of pods answer. Raises MachineError."""
    pods = [pod for node in nodes for pod in node.pods]
    pairs = list(permutations(pods, 2))
    with ThreadPoolExecutor(len(nodes)) as pool:
        answers = list(pool.map(lambda node: _pings_from(node, pairs), nodes))
    trips = {pair: trip for answer in answers for pair, trip in answer.items()}
    silent = [f"{source} to {target}" for source, target in pairs if (source, target) not in trips]
    where = f"{len(pairs)} pairs of {len(pods)} pods"
    if silent or not pairs:
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        words = f"{len(silent)} get no answer: {', '.join(silent[:_NAMED])}{more}"
        return Row("reach", where, ok=False, result=words, figures={"silent": len(silent)})
    middle = median(trips.values())
    return Row(
        "reach",
        where,
        ok=True,
        result=f"all answer, median round trip {middle:.2f} ms",
        figures={"silent": 0, "median_rtt_ms": middle},
    )


def _pings_from(node: Node, pairs: Sequence[Pair]) -> dict[Pair, float]:
    """Return the round trips in ms, by pair, of those of this node's pods that were answered."""
    ours = [pair for pair in pairs if pair[0].machine is node.machine]
    script = "\n".join(_ping(number, *pair) for number, pair in enumerate(ours)) + "\nwait"
    found: dict[Pair, float] = {}
    for line in node.machine.run(script).splitlines():
        number, _, summary = line.partition(" ")
        average = _AVERAGE.search(summary)
        if average is not None and number.isdigit():
            found[ours[int(number)]] = float(average[1])
    return found


def _ping(number: int, source: Pod, target: Pod) -> str:
    """Return the line that prints the number and ping's last line, in the background."""
    ping = f"ip netns exec {source.name} ping -n -q -c 3 -i 0.3 -W 5 {target.address}"
    return f'echo {number} "$({ping} 2>/dev/null | tail -n 1)" &'
