"""`pod`: pods as namespaces, by the real CNI plugins and the list that the daemon writes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kersey_control.cni import CniConfig
from kersey_control.options import CniMode
from manifests import DEPLOY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")

POD = DEPLOY / "vagrant" / "pod"
SUBNET = IPv4Network("10.244.7.0/24")
PRIVATE = """
set -e
for folder in /run /etc/cni /var/lib/cni; do mkdir -p $folder; mount -t tmpfs tmpfs $folder; done
mkdir -p /run/netns /etc/cni/net.d
ip link set lo up
echo ready
exec sleep 600
"""


class Machine:
    """A machine of a test's own: network, /run and CNI's folders."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *command: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["nsenter", f"--target={self._pid}", "--mount", "--net", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def pod(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        done = self.run(POD, *arguments)
        assert done.returncode == 0, done.stderr
        return done

    @property
    def pods(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.pod("list", "--json").stdout)
        return found

    def configure(
        self, *, subnet: IPv4Network = SUBNET, mtu: int = 1450, mode: CniMode = CniMode.BRIDGE
    ) -> None:
        """Write the list as the daemon does."""
        config = CniConfig("cbr0", IPv4Network("10.244.0.0/16"), subnet, mtu, mode)
        path = "/etc/cni/net.d/10-kersey.conflist"
        assert self.run("tee", path, stdin=config.format()).returncode == 0


@contextmanager
def private_machine() -> Iterator[Machine]:
    command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", PRIVATE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield Machine(holder.pid)
        finally:
            holder.kill()


@pytest.fixture
def machine(requires: Callable[..., None]) -> Iterator[Machine]:
    """Give a test a machine with a CNI configuration, without pods."""
    requires("ip", "nsenter")
    if not Path("/usr/lib/cni/bridge").exists():
        pytest.skip("missing: bridge in /usr/lib/cni")
    with private_machine() as made:
        made.configure()
        yield made


@pytest.mark.parametrize("mode", list(CniMode))
def test_pods_reach_each_other_and_are_gone_once_deleted(machine: Machine, mode: CniMode) -> None:
    machine.configure(mode=mode)
    machine.pod("add", "a")
    machine.pod("add", "b")
    addresses = machine.pods
    assert list(addresses) == ["a", "b"]
    assert all(IPv4Address(address) in SUBNET for address in addresses.values())
    ping = machine.run("ip", "netns", "exec", "a", "ping", "-c1", "-w5", addresses["b"])
    assert ping.returncode == 0, ping.stdout
    for name in addresses:
        machine.pod("delete", name)
    assert machine.pods == {}
    assert machine.run("ip", "netns", "list").stdout == ""
    assert not [name for name in taken(machine) if name[0].isdigit()]


def taken(machine: Machine) -> list[str]:
    """Return what host-local keeps."""
    return machine.run("ls", "/var/lib/cni/networks/cbr0").stdout.split()


def test_a_pod_that_fits_is_left_alone_and_one_that_does_not_is_made_anew(machine: Machine) -> None:
    machine.pod("add", "a")
    first = machine.pods
    machine.run("ip", "-n", "a", "link", "set", "eth0", "alias", "the first")
    machine.pod("add", "a")
    assert "the first" in machine.run("ip", "-n", "a", "link", "show", "eth0").stdout
    machine.configure(mtu=1400)
    machine.pod("add", "a")
    shown = machine.run("ip", "-n", "a", "link", "show", "eth0").stdout
    assert "the first" not in shown
    assert "mtu 1400" in shown
    other = IPv4Network("10.244.9.0/24")
    machine.configure(subnet=other, mtu=1400)
    machine.pod("add", "a")
    assert IPv4Address(machine.pods["a"]) in other
    assert machine.pods != first


def test_an_address_that_a_crash_left_reserved_is_no_obstacle(machine: Machine) -> None:
    machine.pod("add", "a")
    machine.run("ip", "netns", "delete", "a")  # as at a reboot: the reservation is on disk
    machine.pod("add", "a")
    assert len([name for name in taken(machine) if name[0].isdigit()]) == 1


def test_disabling_the_template_takes_every_pod_out_of_the_boot_sequence(
    tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("systemctl")
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(DEPLOY / "vagrant" / "kersey-pod@.service", units)

    def systemctl(*words: str) -> None:
        subprocess.run(["systemctl", f"--root={tmp_path}", "--quiet", *words], check=True)

    wants = units / "multi-user.target.wants"
    systemctl("enable", "kersey-pod@one.service", "kersey-pod@two.service")
    assert len(list(wants.iterdir())) == 2
    systemctl("disable", "kersey-pod@.service")  # as docs/INSTALL.md says; globs are refused
    assert not wants.exists()


def test_deleting_a_pod_that_is_not_there_is_no_error(machine: Machine) -> None:
    machine.pod("delete", "nobody")


def test_a_failed_plugin_is_named_and_leaves_no_namespace(machine: Machine) -> None:
    path = "/etc/cni/net.d/10-kersey.conflist"
    plugin = {"type": "bridge", "mtu": 1450, "ipam": {"type": "nonsense", "ranges": []}}
    config = {"cniVersion": "0.4.0", "name": "n", "plugins": [plugin]}
    machine.run("tee", path, stdin=json.dumps(config))
    done = machine.run(POD, "add", "a")
    assert done.returncode == 1
    assert "plugin bridge" in done.stderr
    assert machine.run("ip", "netns", "list").stdout == ""


@pytest.mark.parametrize("arguments", [["add"], ["add", "../a"], ["add", "-"], ["rename", "a"]])
def test_a_wrong_call_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([POD, *arguments], capture_output=True, check=False)
    assert done.returncode == 2
