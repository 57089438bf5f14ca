"""Both testbeds, and the comparison: the same shots into both, the same results out of both."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from kersey_loader.layout import Program
from overlay_view import SUBNETS
from packets import ACK, SYN, TCP, UDP
from testbed import Cluster, wait_until
from testbed.addresses import SWITCH, node_address
from testbed.cluster import DEFAULT_CONFIG

from oracle.rules import RuleSet
from oracle.shots import CLIENT, GHOST, SERVER, End, Flow, Lane, Shot
from oracle.side import Arrivals, FastSide, Side

_LATE = 1.0
"""Seconds that a frame may come after the marker before it counts as lost."""

_FIRST_PORT = 10000
_LAST_NUMBER = 0xFFFF
_PLAIN, _FAST = "--datapath=netlink", "--datapath=bpf"
_GHOST_LEASE = (
    f'{{"PublicIP":"{SWITCH}","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:4d"}}'
)
_S = TypeVar("_S", bound=Side)


@dataclass(frozen=True, slots=True)
class FlowSet:
    """Flows of one batch. The doomed one is primed too, and gets all SYN, FIN and RST."""

    udp: Flow
    tcp: Flow
    doomed: Flow
    fresh_udp: Flow
    fresh_tcp: Flow

    def of(self, shot: Shot) -> Flow:
        """Return the flow that a shot belongs to."""
        if shot.protocol != TCP:
            return self.udp if shot.primed else self.fresh_udp
        if not shot.primed:
            return self.fresh_tcp
        return self.doomed if shot.is_control else self.tcp


class Pair:
    """Two testbeds that get the same packets: `plain` without programs, `fast` with them."""

    def __init__(self, plain: Side, fast: FastSide, *, direct: bool) -> None:
        self.plain = plain
        self.fast = fast
        self.direct = direct
        self._last = 0
        self._ports = count(_FIRST_PORT)
        self._log: dict[int, Shot] = {}

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.plain, self.fast

    def flow(self, protocol: int, lane: Lane = Lane.DIRECT) -> Flow:
        """Return a flow that never was before."""
        return Flow(protocol, next(self._ports), lane)

    def flows(self, lane: Lane) -> FlowSet:
        """Return flows that never were before."""
        return FlowSet(*(self.flow(protocol, lane) for protocol in (UDP, TCP, TCP, UDP, TCP)))

    def fire(self, *shots: tuple[Shot, Flow]) -> None:
        """Send shots into both testbeds, and wait until they are through."""
        for shot, flow in shots:
            number = self._number_for(shot)
            for side in self.sides:
                side.send(number, shot, flow)
        for side in self.sides:
            side.sync()

    def _number_for(self, shot: Shot) -> int:
        """Return a number for a shot that nothing since the last comparison has.

        Those that follow are taken as well if it is several packets. Numbers come round again: 16
        bits are all there are.
        """
        number, self._last = self._last + 1, self._last + shot.datagrams
        if self._last > _LAST_NUMBER:
            number, self._last = 1, shot.datagrams
        self._log.update(dict.fromkeys(range(number, self._last + 1), shot))
        return number

    def prime(self, *flows: Flow) -> None:
        """Let flows be seen in both directions, TCP from its handshake on."""
        tcp = [flow for flow in flows if flow.protocol == TCP]
        self.fire(*((_plain(flow, CLIENT, SYN), flow) for flow in tcp))
        self.fire(*((_plain(flow, SERVER, SYN | ACK), flow) for flow in tcp))
        for end in (CLIENT, SERVER):
            self.fire(*((_plain(flow, end, ACK), flow) for flow in flows))

    def differences(self) -> list[str]:
        """Compare everything since the last call; return what differs, shot by shot."""
        plain, fast = self._settled()
        shots, self._log = self._log, {}
        for side in self.sides:
            side.forget()
        return [
            f"{shots.get(number, 'no shot')}\n  without programs: {_shown(plain.get(number))}"
            f"\n  with programs:    {_shown(fast.get(number))}"
            for number in sorted(plain.keys() | fast.keys())
            if plain.get(number) != fast.get(number)
        ]

    def _settled(self) -> tuple[Arrivals, Arrivals]:
        """Return both accounts, once they agree or time is up."""
        with suppress(TimeoutError):  # the caller names what differs
            wait_until(
                lambda: self.plain.arrivals() == self.fast.arrivals(),
                timeout=_LATE,
                what="the same in both",
            )
        return self.plain.arrivals(), self.fast.arrivals()

    @contextmanager
    def under(self, rules: RuleSet) -> Iterator[None]:
        """Have `rules` on all nodes, and no flow admitted that was so without them."""
        with ExitStack() as stack:
            if rules.daemon_options:
                stack.callback(self._restart)
                self._restart(*rules.daemon_options)
            with self._noticed(rules):
                for node in (*self.plain.nodes, *self.fast.nodes):
                    rules.install(node)
                    stack.callback(rules.remove, node)
            try:
                yield
            finally:
                with self._noticed(rules):
                    stack.close()

    def _noticed(self, rules: RuleSet) -> AbstractContextManager[None]:
        return self.fast.flushed() if rules.flushes else nullcontext()

    def _restart(self, *options: str) -> None:
        for side in self.sides:
            side.restart_daemons(*options)

    def wait_fast(self) -> None:
        """Return once a flow that was seen both ways is fast: the last flush is over."""

        def is_fast() -> bool:
            flow = self.flow(UDP)
            self.prime(flow)
            before = self.fast.fast(CLIENT)[Program.FROM_POD]
            self.fire((_plain(flow, CLIENT, ACK), flow))
            return self.fast.fast(CLIENT)[Program.FROM_POD] > before

        wait_until(is_fast, timeout=10, what="a flow is fast")


def _plain(flow: Flow, sender: End, flags: int) -> Shot:
    return Shot(sender=sender, protocol=flow.protocol, flags=flags)


def _shown(frames: list[str] | None) -> str:
    return "nothing" if not frames else "\n    ".join(frames)


@contextmanager
def side_by_side(*, direct: bool = False) -> Iterator[Pair]:
    """Make both testbeds, the same up to the last address; remove them at the end.

    With `direct` the programs admit TCP between pods at once.
    """
    options = (_FAST, f"--admission={'direct' if direct else 'strict'}")
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        plain = stack.enter_context(Cluster(prefix="kon-"))
        fast = stack.enter_context(Cluster(prefix="kob-"))
        _start(plain, _PLAIN)
        _start(fast, *options)
        # What one CPU sends and forwards stays in order: a marker is behind what it marks.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        yield Pair(
            _opened(stack, Side(plain, _PLAIN)),
            _opened(stack, FastSide(fast, *options)),
            direct=direct,
        )


def _opened(stack: ExitStack, side: _S) -> _S:
    stack.callback(side.close)
    return side


def _start(cluster: Cluster, *options: str) -> None:
    """Start two nodes whose subnets are reserved, and so the same in every testbed."""
    cluster.start_etcd(DEFAULT_CONFIG)
    for index in (1, 2):
        reserved = f'{{"PublicIP":"{node_address(index)}","PublicIPv6":null}}'
        cluster.etcd.put(f"{SUBNETS}10.244.{index}.0-24", reserved)
    cluster.etcd.put(SUBNETS + str(GHOST).replace("/", "-"), _GHOST_LEASE)
    nodes = [cluster.add_node() for _ in range(2)]
    for node in nodes:
        node.daemon.start(*options)
    for node in nodes:
        node.daemon.wait_ready()
        for _ in range(2):
            node.add_pod()
