"""Messages to the service manager over a real datagram socket."""

import os
import socket
from pathlib import Path

import pytest
from kersey_control.sdnotify import ServiceManager


@pytest.mark.parametrize("abstract", [False, True])
def test_each_state_is_one_datagram(tmp_path: Path, *, abstract: bool) -> None:
    name = f"@kersey-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(10)
        manager = ServiceManager({"NOTIFY_SOCKET": name})
        manager.ready("3 peers")
        manager.status("two\nlines")
        manager.alive()
        manager.stopping()
        assert [listener.recv(200) for _ in range(4)] == [
            b"READY=1\nSTATUS=3 peers",
            b"STATUS=two lines",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/x"}]
)
def test_nobody_listening_is_no_error(environ: dict[str, str]) -> None:
    ServiceManager(environ).ready("")


def test_a_full_queue_does_not_block(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        manager = ServiceManager({"NOTIFY_SOCKET": name})
        for _ in range(2000):
            manager.alive()
        assert listener.recv(200) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_patience_is_read(environ: dict[str, str], seconds: float | None) -> None:
    assert ServiceManager(environ).watchdog_seconds == seconds
