"""Which capabilities suffice: those of the overlay `unprivileged`, and one for the slow path."""

import os
from pathlib import Path

import pytest
from manifests import granted_capabilities
from overlay_view import ready
from testbed import Cluster, ping

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")


def confined(folder: Path, kerseyd: Path, capabilities: list[str]) -> Path:
    """Return a program that is kerseyd with these capabilities at most."""
    allowed = ",".join(f"+{name}" for name in capabilities)
    path = folder / "kerseyd"
    path.write_text(
        f"#!/bin/sh\nexec setpriv --inh-caps=-all,{allowed} --bounding-set=-all,{allowed}"
        f' {kerseyd} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("capabilities", "datapath"),
    [
        pytest.param([name.lower() for name in granted_capabilities()], "bpf", id="overlay"),
        pytest.param(["net_admin"], "netlink", id="net_admin"),
    ],
)
def test_these_capabilities_carry_pods_packets_by(
    cluster: Cluster, tmp_path: Path, capabilities: list[str], datapath: str
) -> None:
    cluster.kerseyd = confined(tmp_path, cluster.kerseyd, capabilities)
    ready(cluster, "--ip-masq", nodes=2)
    one, two = cluster.nodes
    assert f"mode={datapath}" in one.daemon.log.read_text()
    assert ping(one.pods[0].namespace, two.pods[0].address, timeout=5) is not None
    rules = one.namespace.run("iptables", "-t", "nat", "-S").stdout
    assert "FLANNEL-POSTRTG" in rules
