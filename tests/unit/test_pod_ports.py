"""Which devices are pod ports."""

import pytest
from kersey_control.devices import Device, Filter, Qdisc
from kersey_control.pod_ports import PodPorts, find_pod_ports, find_shapers, set_apart_shaped

CNI0 = Device(2, "cni0", "bridge", 1450)
UPLINK = Device(3, "eth0", "veth", 1500, is_shared=True)


def veth(ifindex: int, *, master: int = 0, mtu: int = 1450, is_shared: bool = True) -> Device:
    return Device(ifindex, f"veth{ifindex}", "veth", mtu, master=master, is_shared=is_shared)


def ports(*devices: Device, routed: frozenset[int] = frozenset()) -> frozenset[int]:
    bridges = frozenset({CNI0.ifindex})
    return find_pod_ports(devices, bridges=bridges, routed=routed, uplink=UPLINK.ifindex).ports


def test_veths_of_the_bridge_with_our_subnet_are_pod_ports() -> None:
    assert ports(CNI0, UPLINK, veth(4, master=2), veth(5, master=2)) == {4, 5}


def test_a_veth_with_both_ends_here_is_none() -> None:
    assert ports(CNI0, veth(4, master=2, is_shared=False)) == frozenset()


def test_a_veth_of_another_bridge_is_none() -> None:
    docker = Device(9, "docker0", "bridge", 1500)
    assert ports(CNI0, docker, veth(4, master=9)) == frozenset()


def test_other_ports_of_the_bridge_are_none() -> None:
    assert ports(CNI0, Device(4, "tap0", "tun", 1450, master=2)) == frozenset()


def test_a_veth_with_a_host_route_into_our_subnet_is_one() -> None:
    assert ports(veth(4), veth(5), routed=frozenset({4})) == {4}


def test_the_uplink_is_none_even_if_it_looks_like_one() -> None:
    assert ports(UPLINK, routed=frozenset({UPLINK.ifindex})) == frozenset()


def test_an_address_of_our_subnet_on_something_else_than_a_bridge_makes_no_ports() -> None:
    dummy = Device(2, "flannel.1", "vxlan", 1450)
    assert ports(dummy, veth(4, master=2)) == frozenset()


def test_the_smallest_mtu_of_bridge_and_ports_counts() -> None:
    found = find_pod_ports(
        [CNI0, veth(4, master=2, mtu=1400), veth(5, mtu=900)],
        bridges=frozenset({2}),
        routed=frozenset(),
        uplink=3,
    )
    assert (found.mtu, found.bridge) == (1400, CNI0)
    assert find_pod_ports([], bridges=frozenset(), routed=frozenset(), uplink=3).mtu is None


@pytest.mark.parametrize("kind", ["noqueue", "pfifo_fast", "fq_codel", "mq", "clsact"])
def test_what_a_device_has_by_itself_shapes_nothing(kind: str) -> None:
    assert find_shapers([Qdisc(4, kind)], []) == {}


@pytest.mark.parametrize("kind", ["tbf", "htb", "ingress", "netem", "a-future-one"])
def test_any_other_queueing_discipline_shapes(kind: str) -> None:
    assert find_shapers([Qdisc(4, "mq"), Qdisc(4, kind)], []) == {4: f"qdisc {kind}"}


def test_only_filters_of_others_count() -> None:
    ours, foreign = Filter(4, "bpf", is_ours=True), Filter(5, "bpf", is_ours=False)
    assert find_shapers([Qdisc(4, "clsact"), Qdisc(5, "clsact")], [ours, foreign]) == {
        5: "filter bpf"
    }


FOUND = PodPorts(frozenset({4, 5}), CNI0, 1450)


def test_a_shaped_port_is_named_with_its_reason_and_the_others_stay() -> None:
    apart = set_apart_shaped(FOUND, shapers={4: "qdisc tbf", 9: "qdisc htb"}, past={1, 2})
    assert apart.ports == {5}
    assert apart.shaped == {4: "qdisc tbf"}
    assert (apart.bridge, apart.mtu) == (FOUND.bridge, FOUND.mtu)


def test_a_shaper_that_every_port_passes_leaves_none() -> None:
    apart = set_apart_shaped(FOUND, shapers={4: "qdisc tbf", 2: "qdisc htb"}, past={1, 2})
    assert apart.ports == frozenset()
    assert apart.shaped == {4: "qdisc tbf", 5: "qdisc htb"}
