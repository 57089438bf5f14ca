"""The backends whose packets others carry: what the operator's commands get, and never a shell."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kersey_control.backends.alloc import AllocBackend
from kersey_control.backends.extension import ExtensionBackend
from kersey_control.errors import KernelError, PeerRefusedError
from kersey_control.forwarding import Condition, Forwarding
from kersey_control.lease import Lease
from kersey_control.netconfig import ExtensionConfig
from vxlan_lab import HOME, NETWORK, SUBNET, Lab, ip

NODE = IPv4Address("198.18.0.2")
HOSTILE = '"; touch /tmp/owned; echo $(touch /tmp/owned) `touch /tmp/owned` "'

_RECORDER = """
import json, os, sys
line = {"words": sys.argv[2:], "input": sys.stdin.read()}
line |= {k: os.environ[k] for k in ("NETWORK", "SUBNET", "PUBLIC_IP") if k in os.environ}
with open(sys.argv[1], "a") as log:
    log.write(json.dumps(line) + "\\n")
"""


class Recorder:
    """A command that writes down how it was called."""

    def __init__(self, home: Path) -> None:
        self.log = home / "calls"
        self.program = home / "recorder.py"
        self.program.write_text(_RECORDER)

    def command(self, *words: str) -> tuple[str, ...]:
        return (sys.executable, str(self.program), str(self.log), *words)

    def calls(self) -> list[dict[str, object]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def wait_for(self, count: int) -> list[dict[str, object]]:
        deadline = time.monotonic() + 20
        while len(found := self.calls()) < count:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


@pytest.fixture
def opened(lab: Lab) -> Iterator[Callable[..., ExtensionBackend]]:
    backends: list[ExtensionBackend] = []

    def make(**commands: tuple[str, ...]) -> ExtensionBackend:
        names = ("pre_startup", "post_startup", "subnet_add", "subnet_remove")
        config = ExtensionConfig(**{name: commands.get(name, ()) for name in names})
        backends.append(ExtensionBackend(config, NETWORK, lab.rtnl))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


def lease(number: int, data: bytes = b"", backend_type: str = "extension") -> Lease:
    return Lease(
        subnet=IPv4Network((int(NETWORK.network_address) + (number << 8), 24)),
        public_ip=NODE + number,
        backend_type=backend_type,
        backend_data=data,
    )


def test_the_first_command_gives_the_leases_data(
    lab: Lab, opened: Callable[..., ExtensionBackend]
) -> None:
    backend = opened(pre_startup=(sys.executable, "-c", "print('key \"1\"')"))
    backend.prepare(lab.uplink)
    assert backend.lease_data == b'"key \\"1\\""'
    assert (backend.mtu, backend.ifindex, backend.lease_type) == (1500, None, "extension")


def test_without_the_first_command_there_is_no_data(
    lab: Lab, opened: Callable[..., ExtensionBackend]
) -> None:
    backend = opened()
    backend.prepare(lab.uplink)
    assert backend.lease_data == b""


@pytest.mark.parametrize("command", [("/no/such/program",), (sys.executable, "-c", "exit(3)")])
def test_a_first_command_that_fails_is_an_error(
    lab: Lab, opened: Callable[..., ExtensionBackend], command: tuple[str, ...]
) -> None:
    with pytest.raises(KernelError, match=r"Backend\.PreStartupCommand: got a failure"):
        opened(pre_startup=command).prepare(lab.uplink)


def test_our_subnet_is_told_once(
    lab: Lab, opened: Callable[..., ExtensionBackend], recorder: Recorder
) -> None:
    backend = opened(post_startup=recorder.command("post"))
    backend.prepare(lab.uplink)
    for subnet in (SUBNET, SUBNET, lease(9).subnet):
        backend.assign(subnet)
    calls = recorder.wait_for(2)
    assert calls == [
        {
            "words": ["post"],
            "input": "",
            "NETWORK": str(NETWORK),
            "SUBNET": subnet,
            "PUBLIC_IP": "198.18.0.1",
        }
        for subnet in (str(SUBNET), "10.128.9.0/24")
    ]


def test_peers_are_told_as_they_come_change_and_go_in_order(
    lab: Lab, opened: Callable[..., ExtensionBackend], recorder: Recorder
) -> None:
    backend = opened(
        subnet_add=recorder.command("add", "a b"), subnet_remove=recorder.command("remove")
    )
    backend.prepare(lab.uplink)
    (commands,) = backend.followers
    first = lease(1, json.dumps(HOSTILE).encode())
    commands.replace_peers([backend.peer(first), backend.peer(lease(2, b'{"x": 1}'))])
    commands.replace_peers([backend.peer(first)])
    commands.put_peer(backend.peer(first))
    commands.put_peer(backend.peer(lease(1, b'"new"')))
    commands.remove_peer(first.subnet)
    commands.remove_peer(first.subnet)
    calls = recorder.wait_for(5)
    assert [(c["words"], c["SUBNET"], c["PUBLIC_IP"], c["input"]) for c in calls] == [
        (["add", "a b"], "10.128.1.0/24", "198.18.0.3", HOSTILE),
        (["add", "a b"], "10.128.2.0/24", "198.18.0.4", '{"x": 1}'),
        (["remove"], "10.128.2.0/24", "198.18.0.4", '{"x": 1}'),
        (["add", "a b"], "10.128.1.0/24", "198.18.0.3", "new"),
        (["remove"], "10.128.1.0/24", "198.18.0.3", "new"),
    ]
    assert not Path("/tmp/owned").exists()  # noqa: S108  # what the hostile text would make


def test_a_command_that_fails_does_not_keep_the_next_from_running(
    lab: Lab,
    opened: Callable[..., ExtensionBackend],
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = opened(
        subnet_add=(sys.executable, "-c", "import sys; sys.exit('no quota')"),
        subnet_remove=recorder.command("remove"),
    )
    backend.prepare(lab.uplink)
    (commands,) = backend.followers
    commands.put_peer(backend.peer(lease(1)))
    commands.remove_peer(lease(1).subnet)
    recorder.wait_for(1)
    assert any("no quota" in getattr(record, "output", "") for record in caplog.records)


def test_the_kernel_gets_nothing_and_loses_what_an_earlier_backend_left(lab: Lab) -> None:
    backend = AllocBackend(NETWORK, lab.rtnl)
    backend.prepare(lab.uplink)
    ip(f"nexthop add id {int(IPv4Address('10.128.1.0'))} via {NODE} dev up0 onlink protocol 75")
    ip(f"route add 10.128.1.0/24 nhid {int(IPv4Address('10.128.1.0'))} protocol 75")
    ip(f"route add 10.128.2.0/24 via {NODE} dev up0")
    forwarding = Forwarding(backend, lab.rtnl, HOME)
    forwarding.set_peers([backend.peer(lease(1, backend_type=""))], now=0.0)
    assert [status.condition for status in forwarding.statuses()] == [Condition.PROGRAMMED]
    assert [route[0] for route in lab.routes()] == ["10.128.2.0/24"]
    with pytest.raises(PeerRefusedError, match="got 'vxlan', expected none or 'alloc'"):
        backend.peer(lease(1, backend_type="vxlan"))
