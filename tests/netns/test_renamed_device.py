"""A device of ours that someone gives another name is made anew under its own."""

import pytest
from kersey_control.backends.pumped import PumpOptions
from kersey_control.backends.udp import UdpBackend
from kersey_control.netconfig import UdpConfig
from kersey_control.netlink import Links
from kersey_control.options import SpoofCheck
from vxlan_lab import NETWORK, SUBNET, Lab, ip, show


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_renamed_tun_device_is_made_again_under_its_name(lab: Lab, *, up: bool) -> None:
    options = PumpOptions(has_programs=False, check=SpoofCheck.DROP)
    with Links() as links:
        backend = UdpBackend(
            UdpConfig(port=8285), network=NETWORK, links=links, rtnl=lab.rtnl, pump=options
        )
        backend.prepare(lab.uplink)
        backend.assign(SUBNET)
        former = backend.ifindex
        ip("link set flannel0 down")
        ip("link set flannel0 name mine0")
        if up:
            ip("link set mine0 up")
        backend.prepare(lab.uplink)
        backend.assign(SUBNET)
        (device,) = [each for each in show("ip addr") if each["link_type"] == "none"]
        assert (device["ifname"], device["ifindex"]) == ("flannel0", backend.ifindex)
        assert backend.ifindex != former
        addresses = [each["local"] for each in device["addr_info"] if each["family"] == "inet"]
        assert addresses == [str(SUBNET[0])]
        assert "LOWER_UP" in device["flags"]  # held by the pump
        backend.close()


def test_a_renamed_vxlan_device_is_made_again_under_its_name(ready_lab: Lab) -> None:
    former = ready_lab.backend.ifindex
    ip("link set flannel.1 down")
    ip("link set flannel.1 name mine0")
    ready_lab.backend.prepare(ready_lab.uplink)
    assert [each["ifname"] for each in show("ip link show type vxlan")] == ["flannel.1"]
    assert ready_lab.backend.ifindex != former
