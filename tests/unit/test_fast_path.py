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

UPLINK = Uplink(
    ifindex=2,
    name="eth0",
    address=IPv4Address("198.18.0.1"),
    public_ip=IPv4Address("198.18.0.1"),
    mtu=1500,
    reason="the only one",
)


def test_admission_that_is_safe_again_is_no_trouble_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = Status(heartbeat=0.0)
    fast_path = FastPath(
        datapath=MagicMock(),
        options=parse_options([], {}),
        backend=MagicMock(mtu=1450),
        network=MagicMock(),
        links=MagicMock(),
        underlay=MagicMock(),
        status=status,
    )
    refused = MagicMock(side_effect=RequestError("write sysctl", 30, "read-only"))
    monkeypatch.setattr(module, "write_sysctl", refused)
    fast_path.settle(subnet=IPv4Network("10.244.1.0/24"), uplink=UPLINK)
    assert list(status.fast_path_troubles) == ["admission"]
    refused.side_effect = None
    fast_path.check_admission()
    assert status.fast_path_troubles == {}
