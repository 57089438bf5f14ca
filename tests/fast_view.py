"""What the fast path of a testbed node did: its counters, read from the maps that it pinned."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

from kersey_loader.datapath import Datapath, Settings, load
from kersey_loader.layout import Program, Verdict
from testbed import Node

NETWORK = IPv4Network("10.244.0.0/16")


@contextmanager
def fast_path_of(node: Node, *, max_flows: int = 65536) -> Iterator[Datapath]:
    """Open the maps and programs that the node's daemon, told this --max-flows, pinned."""
    settings = Settings(
        directory=node.bpf_dir / "vxlan-1",
        network=NETWORK,
        subnet_len=24,
        max_flows=max_flows,
        handle=1,
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
