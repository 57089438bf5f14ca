"""Whether the uplink gets an XDP program, case by case."""

from dataclasses import dataclass

import pytest
from kersey_control.options import Xdp
from kersey_control.xdp import choose_xdp
from kersey_loader.xdp import Features, Mode, XdpDevice

ABLE = Features.BASIC


@dataclass(frozen=True)
class Row:
    id: str
    asked: Xdp
    mode: Mode | None
    word: str
    kind: str = ""
    driver: str = "ixgbe"
    features: Features | None = ABLE
    foreign: str = ""


ROWS = [
    Row("nic", Xdp.AUTO, Mode.NATIVE, "driver ixgbe"),
    Row("nic-without", Xdp.AUTO, None, "no native XDP", features=Features.NONE),
    Row("nic-asked-for", Xdp.NATIVE, Mode.NATIVE, "driver ixgbe"),
    Row("nic-without-asked-for", Xdp.NATIVE, None, "ixgbe", features=Features.NONE),
    Row("old-kernel", Xdp.AUTO, None, "6.3", features=None),
    Row("old-kernel-asked-for", Xdp.NATIVE, Mode.NATIVE, "ixgbe", features=None),
    Row("veth", Xdp.AUTO, None, "TSO", kind="veth", driver="veth"),
    Row("veth-asked-for", Xdp.NATIVE, Mode.NATIVE, "veth", kind="veth", driver="veth"),
    Row("virtio", Xdp.AUTO, None, "receive offloads", driver="virtio_net"),
    Row("virtio-asked-for", Xdp.NATIVE, Mode.NATIVE, "virtio_net", driver="virtio_net"),
    Row("tun", Xdp.AUTO, None, "segmentation", kind="tun", driver="tun"),
    Row("bond", Xdp.AUTO, None, "what is below", kind="bond", driver="bonding"),
    Row("bond-asked-for", Xdp.NATIVE, Mode.NATIVE, "bonding", kind="bond", driver="bonding"),
    Row(
        "bond-of-a-mode-without",
        Xdp.NATIVE,
        None,
        "is a bond",
        kind="bond",
        driver="bonding",
        features=Features.NONE,
    ),
    Row("vlan", Xdp.AUTO, None, "is a vlan", kind="vlan", features=Features.NONE),
    Row("vlan-asked-for", Xdp.NATIVE, None, "is a vlan", kind="vlan", features=Features.NONE),
    Row("bridge", Xdp.NATIVE, None, "is a bridge", kind="bridge", features=Features.NONE),
    Row("generic-anywhere", Xdp.GENERIC, Mode.GENERIC, "saves no", kind="vlan", features=None),
    Row("foreign", Xdp.NATIVE, None, "another program, guard,", foreign="guard"),
    Row("foreign-auto", Xdp.AUTO, None, "stays", foreign="guard"),
    Row("foreign-generic", Xdp.GENERIC, None, "guard", foreign="guard"),
    Row("libxdp", Xdp.NATIVE, None, "libxdp's dispatcher", foreign="xdp_dispatcher"),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_xdp_is_where_it_can_be_and_helps(row: Row) -> None:
    device = XdpDevice(
        ifindex=2,
        name="eth0",
        kind=row.kind,
        driver=row.driver,
        mtu=1500,
        address=bytes(6),
        features=row.features,
    )
    choice = choose_xdp(row.asked, device, foreign=row.foreign)
    assert choice.mode is row.mode
    assert row.word in choice.reason
    assert choice.name == ("off" if row.mode is None else row.mode.name.lower())
