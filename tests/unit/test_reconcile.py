"""Plans carried out on a model of the kernel: the result, and every step on the way."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from kersey_control.addresses import Mac
from kersey_control.reconcile import (
    FdbEntry,
    KernelObject,
    KernelState,
    Neighbour,
    Nexthop,
    Plan,
    Route,
    StrayRoute,
    key_of,
    plan,
    state_of,
)

_numbers = st.integers(0, 5)
_macs = _numbers.map(lambda n: Mac(f"0e:00:00:00:00:0{n}"))
_addresses = _numbers.map(lambda n: IPv4Address("10.5.0.0") + 256 * n)
_subnets = _addresses.map(lambda address: IPv4Network((address, 24)))


@st.composite
def _desired(draw: st.DrawFn) -> KernelState:
    """Return what some peers need: each route has its nexthop, each nexthop its neighbour."""
    objects: list[KernelObject] = []
    for subnet in draw(st.sets(_subnets)):
        base, mac = subnet.network_address, draw(_macs)
        objects += [
            FdbEntry(7, mac, draw(_addresses)),
            Neighbour(7, base, mac),
            Nexthop(int(base), 7, base, onlink=True),
            Route(subnet, int(base)),
        ]
    return state_of(objects)


_strays = st.builds(
    StrayRoute,
    subnet=_subnets,
    ifindex=st.just(7),
    gateway=_addresses,
    nexthop=st.just(0),
    protocol=st.sampled_from([3, 75]),
    metric=st.sampled_from([0, 100]),
    tos=st.just(0),
    replaceable=st.booleans(),
)


@st.composite
def _actual(draw: st.DrawFn) -> KernelState:
    """Return what a kernel may hold: what other peers once needed, less some, plus strays."""
    state = draw(_desired())
    for key in draw(st.lists(st.sampled_from(sorted(state, key=str)))) if state else ():
        state.pop(key, None)
    kept = [obj for obj in state.values() if not isinstance(obj, Route) or _has_nexthop(obj, state)]
    return state_of([*kept, *draw(st.lists(_strays))])


def _has_nexthop(route: Route, state: KernelState) -> bool:
    return (Nexthop, route.nexthop) in state


def _steps(todo: Plan, actual: KernelState) -> list[KernelState]:
    """Return the kernel's state after each step of a plan."""
    states = [dict(actual)]
    for obj in todo.put:
        states.append({**states[-1], key_of(obj): obj})
    for obj in todo.remove:
        states.append({key: each for key, each in states[-1].items() if key != key_of(obj)})
    return states


@given(_desired(), _actual())
def test_carried_out_plan_gives_the_desired_state(
    desired: KernelState, actual: KernelState
) -> None:
    assert _steps(plan(desired, actual), actual)[-1] == desired


@given(_desired(), _actual())
def test_route_never_refers_to_a_nexthop_that_is_not_there(
    desired: KernelState, actual: KernelState
) -> None:
    for state in _steps(plan(desired, actual), actual):
        routes = [obj for obj in state.values() if isinstance(obj, Route)]
        assert all(_has_nexthop(route, state) for route in routes)


@given(_desired(), _actual())
def test_neighbour_is_put_only_when_its_forwarding_entry_is_as_desired(
    desired: KernelState, actual: KernelState
) -> None:
    for state in _steps(plan(desired, actual), actual):
        new = [o for k, o in state.items() if isinstance(o, Neighbour) and actual.get(k) != o]
        entries = [(FdbEntry, neighbour.ifindex, neighbour.mac) for neighbour in new]
        assert all(state.get(key) == desired[key] for key in entries)


@given(_desired(), _actual())
def test_what_stays_wanted_is_present_at_every_step(
    desired: KernelState, actual: KernelState
) -> None:
    for state in _steps(plan(desired, actual), actual):
        assert desired.keys() & actual.keys() <= state.keys()


@given(_desired(), _actual())
def test_replaced_names_exactly_what_exists_with_another_value(
    desired: KernelState, actual: KernelState
) -> None:
    todo = plan(desired, actual)
    assert todo.replaced == {key_of(obj) for obj in todo.put} & actual.keys()


@given(_desired())
def test_no_plan_is_made_for_a_state_that_is_as_desired(desired: KernelState) -> None:
    assert not plan(desired, desired)


def test_removal_goes_from_route_to_forwarding_entry() -> None:
    base = IPv4Address("10.5.1.0")
    mac = Mac("0e:00:00:00:00:01")
    objects: tuple[KernelObject, ...] = (
        Route(IPv4Network("10.5.1.0/24"), int(base)),
        Nexthop(int(base), 7, base, onlink=True),
        Neighbour(7, base, mac),
        FdbEntry(7, mac, IPv4Address("198.18.0.2")),
    )
    assert plan({}, state_of(reversed(objects))).remove == objects


def test_flood_entries_of_one_mac_are_distinct_and_unicast_ones_are_not() -> None:
    one, two = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")
    zero, unicast = Mac("00:00:00:00:00:00"), Mac("0e:00:00:00:00:01")
    assert key_of(FdbEntry(7, zero, one)) != key_of(FdbEntry(7, zero, two))
    assert key_of(FdbEntry(7, unicast, one)) == key_of(FdbEntry(7, unicast, two))
