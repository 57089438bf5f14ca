"""The provisioning script refuses what it cannot do before it changes anything.

What it does is seen on machines with systemd.
"""

import os
import subprocess

import pytest
from manifests import DEPLOY

PROVISION = DEPLOY / "vagrant" / "provision"


def provision(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KERSEY_")}
    return subprocess.run(
        [PROVISION, *arguments],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("role", ["", "nodes"])
def test_a_role_that_is_none_is_refused(role: str) -> None:
    done = provision(role, KERSEY_ETCD="198.18.0.10")
    assert done.returncode == 2
    assert f"role: got '{role}', expected etcd or node" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERSEY_ETCD", ""),
        ("KERSEY_ETCD", "etcd.example"),
        ("KERSEY_STORE", "kube"),
        ("KERSEY_BACKEND", "wireguard"),
        ("KERSEY_DATAPATH", "xdp"),
        ("KERSEY_PODS", "-1"),
        ("KERSEY_WAIT", "soon"),
        ("KERSEY_PACKAGE", "/nonexistent.deb"),
        ("KERSEY_DEBS", "/nonexistent"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: str) -> None:
    done = provision("node", **{"KERSEY_ETCD": "198.18.0.10", name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"provision: {name}: got '{value}', expected ")
