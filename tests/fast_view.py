"""What the fast path of a testbed node did: its counters, read from the maps that it pinned."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

from kersey_control.instance import instance_of
from kersey_loader.datapath import Datapath, Settings, load
from kersey_loader.layout import Program, Verdict
from kersey_loader.tunnel import TunnelKind
from testbed import Node

NETWORK = IPv4Network("10.244.0.0/16")


def pins_of(node: Node) -> Path:
    """Return where the node's daemon pins programs, maps and links."""
    return node.bpf_dir / f"instance-{instance_of(node.daemon.subnet_file):08x}"


@contextmanager
def fast_path_of(
    node: Node, *, max_flows: int = 65536, tunnel: TunnelKind = TunnelKind.VXLAN
) -> Iterator[Datapath]:
    """Open the maps and programs that the node's daemon, told this --max-flows, pinned."""
    settings = Settings(
        directory=pins_of(node),
        network=NETWORK,
        subnet_len=24,
        tunnel=tunnel,
        max_flows=max_flows,
        handle=instance_of(node.daemon.subnet_file),
    )
    with load(settings) as datapath:
        assert datapath.adopted
        yield datapath


class Counters:
    """Verdicts of one node since this object was made."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._before = self._read()

    def _read(self) -> dict[tuple[Program, Verdict], int]:
        with fast_path_of(self._node) as datapath:
            return datapath.counters()

    def __call__(self, program: Program, verdict: Verdict) -> int:
        """Return how often `program` came to `verdict`."""
        return self._read()[program, verdict] - self._before[program, verdict]

    @property
    def changed(self) -> dict[str, int]:
        """Return every counter that moved, by name; for messages."""
        now = self._read()
        return {
            f"{program.function} {verdict.name.lower()}": now[program, verdict] - count
            for (program, verdict), count in self._before.items()
            if now[program, verdict] != count
        }
