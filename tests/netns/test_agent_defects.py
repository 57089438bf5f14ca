"""A defect in one step of the control loop costs that step, and nothing that waits behind it."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import cast

import pytest
from kersey_control import agent as agent_module
from kersey_control.agent import ROUTES_SETTLE, Agent, FlushAsked, Inbox, PortsChanged, Stop
from kersey_control.events import Changed, Snapshot, StoreEvent
from kersey_control.fast_path import FastPath
from kersey_control.lease import Lease
from kersey_control.local_node import LocalNode
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.notice import Notice
from kersey_control.notices import Notices
from kersey_control.options import Options
from kersey_control.peer import Peer
from kersey_control.pod_ports import PodPorts
from kersey_control.sdnotify import ServiceManager
from kersey_control.status import Status
from kersey_control.subnets.base import Claim, OwnLease, Remembered
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink
from testbed import wait_until
from vxlan_lab import NETWORK, SUBNET, Lab, ip, wait_told

CONFIG = parse_network_config(json.dumps({"Network": str(NETWORK)}).encode(), None)


def lease(number: int) -> Lease:
    return Lease(
        subnet=IPv4Network(f"10.128.{number}.0/24"),
        public_ip=IPv4Address(f"198.18.1.{number}"),
        backend_type="vxlan",
        backend_data=b'{"VNI": 1, "VtepMAC": "0e:2a:00:00:00:%02x"}' % number,
        node_id=f"n{number}",
    )


class Store:
    """Keep one lease for us and those of others; changes are told as they come into `news`."""

    def __init__(self) -> None:
        self.others: tuple[Lease, ...] = ()
        self.news: queue.SimpleQueue[StoreEvent] = queue.SimpleQueue()
        self._own: tuple[Lease, ...] = ()

    def read_config(self) -> bytes:
        raise NotImplementedError

    def remembered(self) -> Remembered:
        raise NotImplementedError

    def announce_network(self) -> None:
        pass

    def tell(self, notice: Notice) -> None:
        pass

    def close(self) -> None:
        pass

    def watch_config(self, stop: threading.Event) -> Iterator[bytes]:
        stop.wait()
        yield from ()

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        del config
        own = Lease(SUBNET, claim.public_ip, node_id=claim.node_id)
        self._own = (own,)
        return OwnLease(own, expires_at=None, revision=0)

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        del claim
        return own

    def watch(self, stop: threading.Event) -> Iterator[StoreEvent]:
        yield Snapshot((*self._own, *self.others))
        while not stop.is_set():
            try:
                yield self.news.get(timeout=0.01)
            except queue.Empty:
                continue


class Programs:
    """Stand in for the fast path, whose programs would have to be compiled."""

    is_untidy = False

    def __init__(self) -> None:
        self.defects: list[Exception] = []

    def follow_ports(self, found: PodPorts) -> None:
        del found
        if self.defects:
            raise self.defects.pop()

    def settle(self, *, subnet: IPv4Network, uplink: Uplink) -> None:
        pass

    def attach(self) -> None:
        pass

    def retire_old(self) -> None:
        pass

    def tidy(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def check_admission(self) -> None:
        pass

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        pass

    def put_peer(self, peer: Peer) -> None:
        pass

    def remove_peer(self, subnet: IPv4Network) -> None:
        pass


class Node:
    """A node's control loop in the lab's namespace, and what disturbs it."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.status = Status()
        self.store = Store()
        self.programs = Programs()
        self.inbox: Inbox = queue.SimpleQueue()
        options = Options(
            subnet_file=directory / "subnet.env", iface=("up0",), iptables_forward_rules=False
        )
        underlay = Underlay(lab.rtnl)
        lab.backend.prepare(lab.uplink)
        self.agent = Agent(
            options=options,
            config=CONFIG,
            node_id="here",
            previous=None,
            given=None,
            store=self.store,
            uplink=lab.uplink,
            backend=lab.backend,
            rtnl=lab.rtnl,
            underlay=underlay,
            local=LocalNode(
                options=options,
                config=CONFIG,
                backend=lab.backend,
                links=lab.links,
                status=self.status,
            ),
            fast_path=cast("FastPath", self.programs),
            status=self.status,
            service=ServiceManager({}),
            notices=Notices(self.store.tell),
            inbox=self.inbox,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        loop = threading.Thread(target=self.agent.run)
        loop.start()
        try:
            yield
        finally:
            self.inbox.put(Stop())
            loop.join()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the loop up, so that it finds together what comes meanwhile."""
        begun, free = threading.Event(), threading.Event()

        def hold(_answer: str) -> None:
            begun.set()
            free.wait(30)

        self.inbox.put(FlushAsked(hold))
        assert begun.wait(30)
        try:
            yield
        finally:
            free.set()

    def expect(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, timeout=20, what=what)

    def expect_ready(self) -> None:
        self.expect(lambda: self.status.ready, "ready")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "REPAIR_RETRY", 0.1)
    monkeypatch.setattr(agent_module, "PUMP_RESTART", 0.1)


@pytest.fixture
def node(lab: Lab, tmp_path: Path) -> Iterator[Node]:
    node = Node(lab, tmp_path)
    wait_told()  # else it hears of a change that no test has made
    with node.running():
        node.expect_ready()
        yield node


def fail(_answer: str) -> None:
    raise ValueError("a defect")


def test_a_message_with_a_defect_keeps_nothing_behind_it_from_being_handled(node: Node) -> None:
    with node.busy():
        node.inbox.put(FlushAsked(fail))
        node.inbox.put(Changed(lease(1)))
        node.inbox.put(FlushAsked(lambda _answer: node.inbox.put(Changed(lease(2)))))
    node.expect(lambda: node.status.peers_programmed == 2, "peers behind the defect")
    assert node.status.loop_failures == 1


def test_leases_are_read_anew_after_a_defect_in_an_event(node: Node) -> None:
    with node.busy():
        node.store.others = (lease(1), lease(2))
        node.inbox.put(Changed(cast("Lease", None)))
        node.inbox.put(Changed(lease(1)))
    node.expect(lambda: node.status.peers_programmed == 2, "all peers")
    assert node.status.resyncs == 2
    node.store.news.put(Changed(lease(3)))
    node.expect(lambda: node.status.peers_programmed == 3, "events behind the new snapshot")


def test_a_task_with_a_defect_keeps_no_other_from_being_done(node: Node) -> None:
    def until_all_are_due(_answer: str) -> None:
        time.sleep(2 * ROUTES_SETTLE)
        node.programs.defects += [ValueError("a defect"), ValueError("another, for the repair")]

    with node.busy():
        ip("link add pod0 type veth peer name pod1")
        ip("route add 203.0.113.0/24 dev up0")
        node.expect(lambda: node.agent._routes_pending and node.agent._ports_pending, "changes")
        node.inbox.put(FlushAsked(until_all_are_due))
    # Where the ports had their turn before there was a defect, they have another one.
    node.inbox.put(PortsChanged())
    node.expect(lambda: node.status.loop_failures >= 1, "the defect")
    node.expect(
        lambda: not node.agent._routes_pending and not node.agent._ports_pending,
        "the next change to be told",
    )


def test_a_lease_that_could_not_be_moved_into_is_tried_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = threading.Thread.start, [RuntimeError("can't start new thread")]

    def start_unless_full(thread: threading.Thread) -> None:
        if thread.name == "lease-watch" and failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_full)
    node = Node(lab, tmp_path)
    node.store.others = (lease(1),)
    with node.running():
        node.expect_ready()
        assert node.status.peers_programmed == 1
        assert node.status.loop_failures == 1
