"""What `scripts/test-vms` does and prints, without a machine."""

from collections.abc import Collection
from typing import cast

import pytest
from testbed.backend import Backend
from vagrant_check.machine import Machine, MachineError
from vagrant_check.node import Node, ready_row
from vagrant_check.row import Row
from vm.__main__ import AFTER, BACKENDS, carry_out, steps
from vm.archive import suite_uri
from vm.errors import VmError
from vm.lab import Lab
from vm.report import Finding, as_lines

WELL = Row("reach", "12 pairs", ok=True, result="all answer")
ILL = Row("device", "node1", ok=False, result="none")
NO_LAB = cast("Lab", None)  # steps are only named here


def names(*backends: str, fast: bool = True, after: Collection[str] = ()) -> list[str]:
    return [name for name, _ in steps(NO_LAB, backends, fast=fast, after=after)]


def test_each_backend_is_tried_without_and_with_the_fast_path() -> None:
    assert names("ipip", "udp") == [
        *("ipip, netlink", "ipip, auto", "ipip, load"),
        *("udp, netlink", "udp, auto", "udp, load"),
    ]


def test_one_datapath_can_be_asked_for() -> None:
    chosen = steps(NO_LAB, ["ipip"], datapaths=["auto"], fast=True)
    assert [name for name, _ in chosen] == ["ipip, auto", "ipip, load"]
    chosen = steps(NO_LAB, ["ipip"], datapaths=["netlink"], fast=True)
    assert [name for name, _ in chosen] == ["ipip, netlink"]


def test_on_an_old_kernel_the_reason_is_asked_for_instead() -> None:
    assert names("ipip", fast=False)[-1] == "ipip, old kernel"


def test_bcc_is_removed_last_as_nothing_brings_it_back() -> None:
    assert names("vxlan", after=AFTER)[3:] == [
        *("restart", "xdp", "upgrade", "reboot", "lockdown", "no-bcc")
    ]
    assert names("vxlan", after=["no-bcc", "reboot"])[3:] == ["reboot", "no-bcc"]


def test_there_is_no_xdp_on_a_kernel_that_is_too_old_for_the_fast_path() -> None:
    assert names("vxlan", fast=False, after=["reboot", "xdp"])[3:] == ["reboot"]


def test_every_backend_with_a_wire_of_its_own_can_be_asked_for() -> None:
    assert {backend.type for backend in BACKENDS.values()} == {"vxlan", "host-gw", "udp", "ipip"}
    assert BACKENDS["vxlan-direct"] == Backend("vxlan", direct_routing=True)


@pytest.mark.parametrize("error", [VmError("no answer"), MachineError("no answer"), TimeoutError()])
def test_step_that_cannot_be_made_fails_and_the_next_is_made(error: Exception) -> None:
    def broken() -> list[Row]:
        raise error

    first, second = carry_out([("one", broken), ("two", lambda: [WELL])])
    assert not first.ok
    assert first.rows[0].result == str(error)
    assert second.ok


def test_node_whose_daemon_has_just_begun_is_not_ready_and_no_error() -> None:
    status = {
        "ready": False,
        "backend": "",
        "datapath": {"mode": "", "reason": ""},
        "uplink": None,
        "subnet": None,
        "peers": {"programmed": 0},
    }
    row = ready_row(Node(Machine("node1", "", 1.0), status, ()), nodes=2)
    assert (row.ok, row.where) == (False, "node1")
    assert "not ready" in row.result


def test_step_without_a_row_is_no_success() -> None:
    assert not Finding("nothing", 0.0, ()).ok


def test_table_says_step_time_and_verdict_once_a_step() -> None:
    findings = [Finding("ipip, auto", 61.6, (WELL, ILL)), Finding("reboot", 9.2, (WELL,))]
    kernel, head, *lines, verdict = as_lines("6.1.0-56-cloud-amd64", findings)
    assert kernel == "kernel 6.1.0-56-cloud-amd64"
    assert head.split() == ["STEP", "TIME", "CHECK", "WHERE", "RESULT"]
    assert [line.split() for line in lines] == [
        ["ipip,", "auto", "62", "s", "reach", "12", "pairs", "ok", "all", "answer"],
        ["device", "node1", "FAILED", "none"],
        ["reboot", "9", "s", "reach", "12", "pairs", "ok", "all", "answer"],
    ]
    assert verdict == "1 of 2 steps failed"


@pytest.mark.parametrize(
    ("suite", "where"),
    [("bullseye", "main/"), ("trixie-backports", "main/"), ("bullseye-security", "security/")],
)
def test_other_suites_are_where_this_machines_own_come_from(suite: str, where: str) -> None:
    mirrors = {"bookworm": "main/", "bookworm-updates": "main/", "bookworm-security": "security/"}
    assert suite_uri(mirrors, suite) == where


def test_machine_without_a_mirror_of_debian_is_told_so() -> None:
    with pytest.raises(VmError, match="no mirror for trixie"):
        suite_uri({}, "trixie")
