"""How fast it is: TCP between two pods, and between their machines without a network of pods."""

import json
from collections.abc import Sequence

from vagrant_check.machine import Machine, MachineError
from vagrant_check.node import Node, first_pods
from vagrant_check.row import Row

_PORT = 5008
_GIGA = 1e9


def speed_rows(nodes: Sequence[Node], *, seconds: float) -> list[Row]:
    """Return the throughput from the first node's pod to the second's, and of the bare way.

    Raises MachineError.
    """
    one, two = first_pods(nodes)[:2]
    bare = _stream(one.machine, two.machine, nodes[1].address, seconds=seconds)
    pods = _stream(
        one.machine,
        two.machine,
        two.address,
        seconds=seconds,
        source=f"ip netns exec {one.name}",
        target=f"ip netns exec {two.name}",
    )
    return [
        _row(f"{one.machine.name} to {two.machine.name}, bare", bare, ""),
        _row(f"{one} to {two}", pods, f", {pods / bare:.2f} of the bare way"),
    ]


def _row(where: str, bits: float, note: str) -> Row:
    words = f"{bits / _GIGA:.2f} Gbit/s{note}"
    return Row("speed", where, ok=True, result=words, figures={"bits_per_second": bits})


def _stream(
    one: Machine, two: Machine, address: str, *, seconds: float, source: str = "", target: str = ""
) -> float:
    """Return bits a second of one TCP connection. `source` and `target` stand before iperf3."""
    serve = f"exec timeout {one.timeout:g} {target} iperf3 -s -1 -p {_PORT}"
    client = f"{source} iperf3 -J -c {address} -p {_PORT} -t {seconds:g}"
    # The server takes a moment; and with -J, iperf3 3.12 exits with 0 even where it was refused.
    script = (
        f"for _ in $(seq 50); do told=$({client});"
        ' case $told in *sum_received*) break ;; esac; sleep 0.3; done; echo "$told"'
    )
    with two.start(serve):
        answer = one.run(script)
    try:
        return float(json.loads(answer)["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError) as error:
        raise MachineError(f"{one.name}: iperf3 said {answer.strip()!r}") from error
