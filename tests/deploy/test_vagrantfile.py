"""The Vagrantfile: Vagrant accepts it, and what Vagrant does not look at is as it should be."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Stands in for Vagrant: every setting is kept by its path, blocks are run.
RECORDER = """
require "json"
class Recorder
  def initialize(found = {}, path = "") = (@found, @path = found, path)
  attr_reader :found
  def respond_to_missing?(*) = true
  def method_missing(name, *arguments, **options, &block)
    here = @path + "/" + name.to_s.delete_suffix("=")
    here += "/" + arguments.shift.to_s if block && !arguments.empty?
    (@found[here] ||= []) << arguments + [options] unless arguments.empty? && options.empty?
    below = Recorder.new(@found, here)
    block&.call(below)
    below
  end
end
module Vagrant
  def self.configure(_version) = (yield $recorder = Recorder.new)
end
load ARGV[0]
puts JSON.generate($recorder.found)
"""
OTHERS = [IPv4Network("192.0.2.0/24"), IPv4Network("192.168.121.0/24"), IPv4Network("10.0.2.0/24")]
"""Documentation's own, vagrant-libvirt's and VirtualBox's NAT."""


def run(*command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KERSEY_")}
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def vagrant(tmp_path: Path, requires: Callable[..., None]) -> Callable[..., Any]:
    """Give a test Vagrant with a home and a memory of its own."""
    requires("vagrant")
    places = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    places |= {"VAGRANT_DEFAULT_PROVIDER": "libvirt", "VAGRANT_CHECKPOINT_DISABLE": "1"}
    return lambda *words, **environ: run("vagrant", *words, **places, **environ)


def recorded(requires: Callable[..., None], **environ: str) -> dict[str, list[list[Any]]]:
    """Return what the Vagrantfile sets."""
    requires("ruby")
    done = run("ruby", "-e", RECORDER, str(REPOSITORY / "Vagrantfile"), **environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return found


def addresses(found: Mapping[str, list[list[Any]]]) -> dict[str, IPv4Address]:
    """Return the machines' addresses in the private network."""
    calls = {path.split("/")[3]: call for path, call in found.items() if path.endswith("/network")}
    assert all(call[0][0] == "private_network" for call in calls.values())
    return {name: IPv4Address(call[0][1]["ip"]) for name, call in calls.items()}


def test_vagrant_accepts_it(vagrant: Callable[..., Any]) -> None:
    done = vagrant("validate")
    assert (done.returncode, done.stdout) == (0, "Vagrantfile validated successfully.\n"), done


def test_there_is_one_etcd_and_as_many_nodes_as_asked_for(vagrant: Callable[..., Any]) -> None:
    done = vagrant("status", "--machine-readable", KERSEY_NODES="5")
    rows = [line.split(",") for line in done.stdout.splitlines()]
    names = {row[1] for row in rows if row[2] == "state"}
    assert names == {"etcd", *(f"node{number}" for number in range(1, 6))}, done.stdout


@pytest.mark.parametrize(("nodes", "private_network"), [("3", ""), ("100", "198.18.7")])
def test_addresses_are_unique_and_collide_with_nothing(
    requires: Callable[..., None], nodes: str, private_network: str
) -> None:
    chosen = {"KERSEY_PRIVATE_NETWORK": private_network} if private_network else {}
    found = recorded(requires, KERSEY_NODES=nodes, **chosen)
    given = addresses(found)
    assert len(given) == len(set(given.values())) == int(nodes) + 1
    network = IPv4Network(f"{private_network or '192.168.56'}.0/24")
    assert all(address in network for address in given.values())
    assert not any(address in other for address in given.values() for other in OTHERS)


def test_every_machine_is_provisioned_by_its_role_and_told_where_etcd_is(
    requires: Callable[..., None],
) -> None:
    found = recorded(requires, KERSEY_BACKEND="host-gw", KERSEY_PODS="1")
    calls = {path.split("/")[3]: call for path, call in found.items() if "/provision" in path}
    assert set(calls) == {"etcd", "node1", "node2", "node3"}
    for name, ((kind, options),) in calls.items():
        role = name.rstrip("0123456789")
        assert kind == "shell"
        assert options["inline"] == f"exec bash /vagrant/deploy/vagrant/provision {role}"
        assert options["env"] == {
            "KERSEY_ETCD": str(addresses(found)["etcd"]),
            "KERSEY_BACKEND": "host-gw",
            "KERSEY_PODS": "1",
        }


def test_machines_are_what_was_asked_for(requires: Callable[..., None]) -> None:
    found = recorded(
        requires,
        KERSEY_BOX="example/box",
        KERSEY_CPUS="3",
        KERSEY_MEMORY="2048",
        KERSEY_LIBVIRT_DRIVER="qemu",
    )
    assert found["/vm/box"] == [["example/box", {}]]
    for provider in ("libvirt", "virtualbox"):
        assert found[f"/vm/provider/{provider}/cpus"] == [[3, {}]]
        assert found[f"/vm/provider/{provider}/memory"] == [[2048, {}]]
    assert found["/vm/provider/libvirt/driver"] == [["qemu", {}]]


def test_a_box_is_named_by_default(requires: Callable[..., None]) -> None:
    assert recorded(requires)["/vm/box"] == [["debian/bookworm64", {}]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERSEY_NODES", "0"),
        ("KERSEY_NODES", "many"),
        ("KERSEY_MEMORY", "1G"),
        ("KERSEY_PRIVATE_NETWORK", "192.168.256"),
        ("KERSEY_PRIVATE_NETWORK", "192.168.56.0/24"),
        ("KERSEY_LIBVIRT_DRIVER", "xen"),
        ("KERSEY_STORE", "kube"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    requires: Callable[..., None], name: str, value: str
) -> None:
    requires("ruby")
    done = run("ruby", "-e", RECORDER, str(REPOSITORY / "Vagrantfile"), **{name: value})
    assert done.returncode == 1
    assert f"{name}: got '{value}', expected " in done.stderr
