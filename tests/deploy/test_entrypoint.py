"""The image's entry point: plugins for a node that lacks them, and the node's kind of iptables."""

import os
import subprocess
from pathlib import Path

import pytest
from manifests import DEPLOY

ENTRY_POINT = DEPLOY / "image" / "entrypoint"
PLUGINS = ("bridge", "ptp", "host-local", "loopback", "portmap", "bandwidth")


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ENTRY_POINT, *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Give a test a folder of the image's plugins, each of which says its name."""
    for name in (*PLUGINS, "dhcp"):
        program(tmp_path / "plugins" / name, f"echo {name}")
    return tmp_path / "plugins"


def test_a_node_gets_the_plugins_that_it_lacks_and_keeps_its_own(
    tmp_path: Path, plugins: Path
) -> None:
    node = tmp_path / "bin"
    program(node / "bridge", "echo the node's own")
    done = run("install-cni", str(node), CNI_PLUGINS=str(plugins))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in node.iterdir()} == set(PLUGINS)
    assert "the node's own" in (node / "bridge").read_text()
    assert (node / "portmap").read_text() == (plugins / "portmap").read_text()
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in node.iterdir())
    assert "bridge" not in done.stderr
    again = run("install-cni", str(node), CNI_PLUGINS=str(plugins))
    assert (again.returncode, again.stderr) == (0, "")


def test_a_plugin_folder_that_is_not_mounted_is_refused_by_name(
    tmp_path: Path, plugins: Path
) -> None:
    done = run("install-cni", str(tmp_path / "absent"), CNI_PLUGINS=str(plugins))
    assert done.returncode == 2
    assert str(tmp_path / "absent") in done.stderr


@pytest.mark.parametrize(
    ("nft", "legacy", "is_legacy"),
    [
        (":KUBE-IPTABLES-HINT - [0:0]", "", False),
        ("", ":KUBE-IPTABLES-HINT - [0:0]", True),
        ("", ":KUBE-KUBELET-CANARY - [0:0]", True),
        (":KUBE-IPTABLES-HINT - [0:0]", ":KUBE-IPTABLES-HINT - [0:0]", False),
        ("", "", False),
    ],
)
def test_the_daemon_uses_the_iptables_that_the_kubelet_uses(
    tmp_path: Path, nft: str, legacy: str, *, is_legacy: bool
) -> None:
    folder, kept = tmp_path / "bin", tmp_path / "legacy"
    program(folder / "iptables-nft-save", f"echo '{nft}'")
    program(folder / "iptables-legacy-save", f"echo '{legacy}'")
    program(folder / "kerseyd", 'iptables; echo "$@"')
    program(folder / "iptables", "echo nft")
    program(kept / "iptables", "echo legacy")
    done = run(
        "kerseyd",
        "--ip-masq",
        PATH=f"{folder}:{os.environ['PATH']}",
        LEGACY_IPTABLES=str(kept),
        BPFFS=str(tmp_path),
    )
    assert done.stdout == f"{'legacy' if is_legacy else 'nft'}\n--ip-masq\n", done.stderr
    assert "not mounted from the node" in done.stderr


def test_other_commands_run_as_they_are_with_their_status() -> None:
    done = run("sh", "-c", "echo 'a  b'; exit 7")
    assert (done.stdout, done.returncode) == ("a  b\n", 7)
