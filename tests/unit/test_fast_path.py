"""What the fast path says of itself: a trouble is over when it is over."""

from ipaddress import IPv4Address, IPv4Network
from unittest.mock import MagicMock

import pytest
from kersey_control import fast_path as module
from kersey_control.fast_path import FastPath
from kersey_control.netlink import RequestError
from kersey_control.options import parse_options
from kersey_control.status import Status
from kersey_control.uplink import Uplink
from kersey_loader.errors import AttachError
from kersey_loader.xdp import Features, XdpDevice

UPLINK = Uplink(
    ifindex=2,
    name="eth0",
    address=IPv4Address("198.18.0.1"),
    public_ip=IPv4Address("198.18.0.1"),
    mtu=1500,
    reason="the only one",
)


def fast_path_of(status: Status, datapath: MagicMock, *flags: str) -> FastPath:
    """Return one that is settled, over a stand-in for the programs."""
    made = FastPath(
        datapath=datapath,
        options=parse_options(flags, {}),
        backend=MagicMock(mtu=1450),
        network=MagicMock(),
        links=MagicMock(),
        underlay=MagicMock(),
        status=status,
    )
    made.settle(subnet=IPv4Network("10.244.1.0/24"), uplink=UPLINK)
    return made


def test_admission_that_is_safe_again_is_no_trouble_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = Status(heartbeat=0.0)
    refused = MagicMock(side_effect=RequestError("write sysctl", 30, "read-only"))
    monkeypatch.setattr(module, "write_sysctl", refused)
    fast_path = fast_path_of(status, MagicMock())
    assert list(status.fast_path_troubles) == ["admission"]
    refused.side_effect = None
    fast_path.check_admission()
    assert status.fast_path_troubles == {}


def test_xdp_is_off_while_the_programs_that_know_what_it_opened_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = XdpDevice(
        ifindex=UPLINK.ifindex,
        name=UPLINK.name,
        kind="",
        driver="nic",
        mtu=1500,
        address=bytes(6),
        features=Features.BASIC,
    )
    monkeypatch.setattr(module, "write_sysctl", MagicMock())
    monkeypatch.setattr(module, "read_device", lambda _ifindex: device)
    status, datapath = Status(heartbeat=0.0), MagicMock()
    datapath.attach_uplink.side_effect = AttachError("no such device")
    fast_path = fast_path_of(status, datapath, "--xdp=native")
    fast_path.attach()
    assert (status.xdp_mode, datapath.attach_wire.called) == ("off", False)
    assert "TC programs" in status.xdp_reason
    assert datapath.detach_wire.called
    datapath.attach_uplink.side_effect = None
    fast_path.attach()
    assert (status.xdp_mode, datapath.attach_wire.called) == ("native", True)
