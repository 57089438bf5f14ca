"""The table of nodes against a model that knows no events: whatever happens, both agree."""

from functools import partial
from ipaddress import IPv4Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kersey_control.events import Changed, Forgotten, Removed, Skipped, Snapshot, StoreEvent
from kersey_control.lease import Lease
from kersey_control.subnets.kube_node import Node, Unreadable
from kersey_control.subnets.kube_table import NodeTable, Own
from kube.members import cidr, data, make_lease

OWN_NUMBER = 5
OWN_NODE = Node(
    name="own",
    pod_cidrs=(cidr(OWN_NUMBER),),
    is_managed=True,
    public_ip=f"198.18.0.{OWN_NUMBER}",
    backend_type="vxlan",
    backend_data=data(OWN_NUMBER),
)
OWN = Own("own", IPv4Network(cidr(OWN_NUMBER)), OWN_NODE, "100")


def make_node(number: int, *, name: str = "", **changes: object) -> Node:
    node = Node(
        name=name or f"n{number:04}",
        pod_cidrs=(cidr(number),),
        is_managed=True,
        public_ip=f"198.18.0.{number}",
        backend_type="vxlan",
        backend_data=data(number),
    )
    return msgspec.structs.replace(node, **changes)


def apply(state: dict[IPv4Network, Lease], events: list[StoreEvent]) -> None:
    for event in events:
        match event:
            case Snapshot(leases):
                state.clear()
                state.update({lease.subnet: lease for lease in leases})
            case Changed(lease):
                state[lease.subnet] = lease
            case Removed(subnet):
                del state[subnet]  # KeyError: a lease is only removed where there was one
            case _:
                assert isinstance(event, Skipped | Forgotten)


class Model:
    """All nodes, the one that changed last at the end."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def put(self, node: Node) -> None:
        if self.nodes.get(node.name) != node:
            self.nodes.pop(node.name, None)
            self.nodes[node.name] = node

    def leases(self) -> dict[IPv4Network, Lease]:
        found: dict[IPv4Network, Lease] = {}
        for node in self.nodes.values():
            if not node.is_managed or not node.public_ip or node.public_ip == "garbage":
                continue
            number = int(node.pod_cidrs[0].split(".")[2])
            is_own = node.name == "own"
            if is_own == (number == OWN_NUMBER) and (not is_own or node == OWN_NODE):
                lease = make_lease(number, name=node.name)
                found[lease.subnet] = lease
        return found


names = st.sampled_from(["own", "a", "b", "c"])
nodes = st.builds(
    lambda name, number, is_managed, garbage: make_node(
        number,
        name=name,
        is_managed=is_managed,
        public_ip="garbage" if garbage else f"198.18.0.{number}",
    ),
    names,
    st.integers(3, 6),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([False, False, False, True]),
)
steps = st.one_of(nodes, nodes, nodes, names, st.frozensets(names))


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=30))
def test_events_amount_to_the_nodes(walk: list[Node | str | frozenset[str]]) -> None:
    """A node comes or changes, a name goes, or some go unseen and the rest is listed anew."""
    table, model = NodeTable(lambda: OWN), Model()
    state: dict[IPv4Network, Lease] = {}
    for step in walk:
        match step:
            case Node():
                model.put(step)
                apply(state, [*table.put(step, "200")])
            case str():
                model.nodes.pop(step, None)
                apply(state, [*table.remove(step)])
            case _:
                for name in step:
                    model.nodes.pop(name, None)
                apply(state, [table.replace(model.nodes.values())])
        assert state == model.leases()


@settings(max_examples=200, deadline=None)
@given(st.lists(nodes, max_size=20))
def test_what_changes_nothing_gives_no_event(walk: list[Node]) -> None:
    table = NodeTable(lambda: OWN)
    for node in walk:
        table.put(node, "200")
        assert table.put(msgspec.structs.replace(node), "201") == []


def test_an_heir_takes_over_when_a_shared_subnet_is_given_up() -> None:
    table = NodeTable(lambda: None)
    first, second = make_node(1, name="a"), make_node(1, name="b")
    table.replace([first, second])
    assert table.remove("b") == [Changed(make_lease(1, name="a"))]
    table.put(second)
    assert table.remove("a") == []
    assert table.remove("b") == [Removed(make_lease(1).subnet)]
    assert table.remove("b") == []


def test_a_node_that_changes_for_years_takes_no_more_room() -> None:
    table = NodeTable(lambda: None)
    for number in range(100):
        table.put(make_node(1, backend_data=data(number)))
    assert table._holders == {make_lease(1).subnet: ("n0001",)}


def test_an_unreadable_node_is_reported_once_and_takes_its_lease_along() -> None:
    table = NodeTable(lambda: None)
    table.put(make_node(1))
    bad = Unreadable("n0001", "a node (x)")
    skipped = Skipped("n0001", "node: got 'n0001', expected a node (x)")
    assert table.put(bad) == [skipped, Removed(make_lease(1).subnet)]
    assert table.put(bad) == []
    assert table.put(make_node(1)) == [Changed(make_lease(1))]
    assert table.replace([bad, make_node(2)]) == Snapshot((make_lease(2),), (skipped,))


def test_a_skipped_node_that_is_gone_or_claims_nothing_any_more_is_forgotten() -> None:
    table = NodeTable(lambda: OWN)
    twin = make_node(OWN_NUMBER, name="twin")
    idle = make_node(OWN_NUMBER, name="twin", pod_cidrs=())
    for change in (partial(table.remove, "twin"), partial(table.put, idle)):
        assert [type(event) for event in table.put(twin)] == [Skipped]
        assert change() == [Forgotten("twin")]
        assert table.remove("twin") == []


@pytest.mark.parametrize(
    ("own", "revision", "is_lost"),
    [
        (OWN, "101", True),
        (OWN, "99", False),  # older than our own writing: what we wrote is on its way
        (OWN, "100", True),
        (OWN, "1000", True),
        (OWN, "", True),
        (OWN, "x", True),
        (Own("own", OWN.subnet), "101", False),  # we are writing
        (None, "101", False),
    ],
)
def test_our_node_is_lost_only_by_what_came_after_us(
    own: Own | None, revision: str, *, is_lost: bool
) -> None:
    now: list[Own | None] = [OWN]
    table = NodeTable(lambda: now[0])
    table.put(OWN_NODE, "100")
    now[0] = own
    events = table.put(msgspec.structs.replace(OWN_NODE, public_ip="198.18.0.9"), revision)
    assert (events == [Removed(OWN.subnet)]) == is_lost
    assert any(isinstance(event, Changed) for event in events) != is_lost


def test_a_dispute_is_seen_at_the_next_heartbeat() -> None:
    """Somebody wrote while we did, and what he wrote came through: it must not stay."""
    now = [Own("own", OWN.subnet)]
    table = NodeTable(lambda: now[0])
    foreign = msgspec.structs.replace(OWN_NODE, public_ip="198.18.0.9")
    assert len(table.put(foreign, "101")) == 1
    now[0] = OWN
    assert table.put(foreign, "102") == [Removed(OWN.subnet)]
    assert table.put(OWN_NODE, "103") == [Changed(make_lease(OWN_NUMBER, name="own"))]
