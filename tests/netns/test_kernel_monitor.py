"""The kernel monitor on a real kernel: links, lost messages, faulty listeners, its end."""

import socket
import threading

import pytest
from kersey_control.monitor import ChangeKind, KernelChange, Monitor
from testbed.waiting import wait_until
from vxlan_lab import Lab, ip, now, peer


def test_link_changes_carry_number_and_name(lab: Lab) -> None:
    seen: list[KernelChange] = []
    with Monitor(seen.append):
        lab.ready()
        ifindex = lab.backend.ifindex
        ip("link del flannel.1")
        gone = KernelChange(ChangeKind.LINK, ifindex=ifindex, gone=True, name="flannel.1")
        wait_until(lambda: gone in seen, timeout=5, what="the device's end")
    came = KernelChange(ChangeKind.LINK, ifindex=ifindex, name="flannel.1")
    address = KernelChange(ChangeKind.ADDRESS, ifindex=ifindex)
    assert seen.index(came) < seen.index(address) < seen.index(gone)


def test_what_changes_after_an_overflow_was_reported_is_never_lost(ready_lab: Lab) -> None:
    seen: list[KernelChange] = []
    hold, held = threading.Event(), threading.Event()
    lost = KernelChange(ChangeKind.OVERFLOW)

    def report(change: KernelChange) -> None:
        seen.append(change)
        held.set()
        hold.wait(10)
        if change == lost:  # whoever hears of it reads everything, and this comes after
            ip("link set far0 mtu 1300")

    with Monitor(report) as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ip("link set far0 mtu 1400")
        assert held.wait(5)
        ready_lab.forwarding.set_peers([peer(number) for number in range(1, 200)], now())
        hold.set()
        wait_until(lambda: lost in seen, timeout=30, what="the report of lost changes")
        wait_until(
            lambda: any(change.name == "far0" for change in seen[seen.index(lost) :]),
            timeout=30,
            what="a change after the lost ones",
        )


def test_faulty_listener_does_not_end_the_monitor(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[KernelChange] = []

    def report(change: KernelChange) -> None:
        seen.append(change)
        raise ValueError(lab.uplink.name)

    with Monitor(report):
        ip("link set far0 down")
        wait_until(lambda: len(seen) > 1, timeout=5, what="two changes")
    assert "kernel change not handled" in caplog.messages


def test_closed_monitor_is_silent(lab: Lab) -> None:
    seen: list[KernelChange] = []
    monitor = Monitor(seen.append)
    monitor.close()
    monitor.close()
    lab.ready()
    assert seen == []
    assert "kernel-monitor" not in [thread.name for thread in threading.enumerate()]
