"""Which kernel changes contradict what we want, and which do not."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from kersey_control.addresses import Mac
from kersey_control.monitor import ChangeKind, KernelChange, Watched, is_relevant, parse_changes
from kersey_control.reconcile import (
    FdbEntry,
    KernelObject,
    Neighbour,
    Nexthop,
    Route,
    StrayRoute,
    key_of,
    state_of,
)

OVERLAY, UPLINK, OTHER = 7, 3, 9
WATCHED = Watched(overlay=OVERLAY, uplink=UPLINK, names=frozenset(["flannel.1", "eth0"]))
BASE = IPv4Address("10.5.1.0")
SUBNET = IPv4Network("10.5.1.0/24")
MAC = Mac("0e:00:00:00:00:01")
NODE = IPv4Address("198.18.0.2")
WANTED: tuple[KernelObject, ...] = (
    FdbEntry(OVERLAY, MAC, NODE),
    Neighbour(OVERLAY, BASE, MAC),
    Nexthop(int(BASE), OVERLAY, BASE, onlink=True),
    Route(SUBNET, int(BASE)),
)
DESIRED = state_of(WANTED)


def _stray(subnet: str, ifindex: int) -> StrayRoute:
    return StrayRoute(
        subnet=IPv4Network(subnet),
        ifindex=ifindex,
        gateway=None,
        nexthop=0,
        protocol=3,
        metric=0,
        tos=0,
        replaceable=True,
    )


def _change(obj: KernelObject, *, ifindex: int = OVERLAY, gone: bool = False) -> KernelChange:
    return KernelChange(ChangeKind.OBJECT, ifindex=ifindex, gone=gone, key=key_of(obj), obj=obj)


def _is_relevant(change: KernelChange) -> bool:
    return is_relevant(change, WATCHED, DESIRED)


@pytest.mark.parametrize("obj", WANTED)
def test_wanted_object_matters_when_it_goes_and_not_when_it_comes(obj: KernelObject) -> None:
    assert not _is_relevant(_change(obj))
    assert _is_relevant(_change(obj, gone=True))


@pytest.mark.parametrize(
    "obj",
    [
        FdbEntry(OVERLAY, MAC, NODE + 1),
        Neighbour(OVERLAY, BASE, Mac("0e:00:00:00:00:02")),
        Nexthop(int(BASE), OVERLAY, BASE, onlink=False),
        Route(SUBNET, int(BASE) + 256),
    ],
)
def test_wanted_object_with_another_value_matters(obj: KernelObject) -> None:
    assert _is_relevant(_change(obj))


def test_wanted_neighbour_that_is_no_longer_permanent_matters() -> None:
    key = key_of(WANTED[1])
    assert _is_relevant(KernelChange(ChangeKind.OBJECT, ifindex=OVERLAY, key=key, obj=None))


def test_wanted_route_taken_over_by_another_device_matters() -> None:
    assert _is_relevant(_change(_stray("10.5.1.0/24", OTHER), ifindex=OTHER))


def test_unwanted_object_matters_only_when_it_comes_to_our_device() -> None:
    stray = _stray("10.5.2.0/24", OVERLAY)
    assert _is_relevant(_change(stray))
    assert not _is_relevant(_change(stray, gone=True))
    assert not _is_relevant(_change(_stray("10.5.2.0/24", OTHER), ifindex=OTHER))


def test_learned_neighbour_does_not_matter() -> None:
    key = key_of(Neighbour(OVERLAY, BASE + 7, MAC))
    assert not _is_relevant(KernelChange(ChangeKind.OBJECT, ifindex=OVERLAY, key=key, obj=None))


@pytest.mark.parametrize("kind", [ChangeKind.LINK, ChangeKind.ADDRESS])
@pytest.mark.parametrize(
    ("ifindex", "name", "expected"),
    [
        (OVERLAY, "", True),
        (UPLINK, "", True),
        (OTHER, "flannel.1", True),
        (OTHER, "eth0", True),
        (OTHER, "veth1", False),
    ],
)
def test_devices_matter_by_number_and_by_name(
    *, kind: ChangeKind, ifindex: int, name: str, expected: bool
) -> None:
    assert _is_relevant(KernelChange(kind, ifindex=ifindex, name=name)) is expected


@pytest.mark.parametrize("ours", [True, False])
def test_only_a_filter_of_ours_that_goes_calls_for_a_repair(*, ours: bool) -> None:
    change = KernelChange(ChangeKind.QDISC, ifindex=OTHER, gone=True, ours=ours)
    assert _is_relevant(change) is ours


def test_a_foreign_shaper_on_our_device_calls_for_no_repair() -> None:
    assert not _is_relevant(KernelChange(ChangeKind.QDISC, ifindex=UPLINK))


def test_lost_changes_matter() -> None:
    assert _is_relevant(KernelChange(ChangeKind.OVERFLOW))


@pytest.mark.parametrize("data", [b"", b"\0" * 16, b"\x10\0\0\0\x10", bytes(64)])
def test_truncated_or_empty_messages_are_no_change(data: bytes) -> None:
    assert parse_changes(data, frozenset()) == []
