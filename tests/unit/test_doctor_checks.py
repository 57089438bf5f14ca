"""Each check of the doctor, values in and findings out: what is named, how bad, what mends it."""

import json
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kersey_control.devices import Device
from kersey_control.doctor import (
    daemons,
    leftovers,
    mtu,
    offload,
    ports,
    programs,
    reach,
    rules,
    store,
    system,
)
from kersey_control.doctor.examination import Check, Result, examine, worst
from kersey_control.doctor.finding import Finding, Severity, error, listed, note, warning
from kersey_control.doctor.host import Process
from kersey_control.errors import KernelError
from kersey_control.fast_path import NOT_WANTED
from kersey_control.netconfig import parse_network_config
from kersey_control.rules.base import Hazard
from kersey_control.subnets.etcd_options import EtcdOptions
from kersey_control.told import (
    ToldDatapath,
    ToldLease,
    ToldOptions,
    ToldPeers,
    ToldStatus,
    ToldStore,
)
from operator_values import NETWORK, SUBNET, flow, node_view, vxlan

KERSEYD = Process(10, "kerseyd", "/usr/bin/python3 /usr/local/sbin/kerseyd --ip-masq")
OTHER = Process(20, "kerseyd", "/usr/bin/python3 /usr/local/sbin/kerseyd --subnet-file=/x")


def expect(
    found: Iterable[Finding], severity: Severity | None, what: str = "", cure: str = ""
) -> None:
    """Assert that there is exactly this finding, or none."""
    findings = list(found)
    if severity is None:
        assert findings == []
        return
    (finding,) = findings
    assert finding.severity is severity
    assert what in finding.what
    assert cure in finding.cure
    assert finding.why


ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


@pytest.mark.parametrize(
    ("whole", "devices", "severity", "what", "cure"),
    [
        (True, {"eth0": True, "cni0": True}, None, "", ""),
        (False, {"eth0": False}, ERROR, "net.ipv4.ip_forward is 0", "ip_forward=1"),
        (
            True,
            {"eth0": True, "cni0": False},
            ERROR,
            "net.ipv4.conf.cni0.forwarding is 0",
            "sysctl -w net.ipv4.conf.cni0.forwarding=1",
        ),
    ],
)
def test_forwarding(
    *, whole: bool, devices: dict[str, bool], severity: Severity | None, what: str, cure: str
) -> None:
    expect(system.judge_forwarding(whole=whole, devices=devices), severity, what, cure)


@pytest.mark.parametrize(
    ("name", "exists", "up", "severity", "what"),
    [
        ("flannel.1", True, True, None, ""),
        ("", False, False, None, ""),
        ("flannel.1", True, False, ERROR, "flannel.1 is down"),
        ("flannel.1", False, False, ERROR, "flannel.1 is missing"),
    ],
)
def test_the_overlay_device_is_there_and_up(
    name: str, *, exists: bool, up: bool, severity: Severity | None, what: str
) -> None:
    expect(system.judge_device(name, exists=exists, up=up), severity, what)


@pytest.mark.parametrize(
    ("overall", "value", "severity"),
    [(0, 0, None), (0, 1, WARNING), (1, 0, WARNING), (2, 1, None), (1, 2, None), (0, 2, None)],
)
def test_the_greater_of_both_reverse_path_settings_counts(
    overall: int, value: int, severity: Severity | None
) -> None:
    found = system.judge_reverse_path(overall=overall, devices={"eth0": value})
    expect(found, severity, "strict on eth0", "net.ipv4.conf.eth0.rp_filter=2")


@pytest.mark.parametrize(
    ("call", "has_services", "severity", "what"),
    [
        (None, False, None, ""),
        ("1", True, None, ""),
        (None, True, WARNING, "br_netfilter is not loaded"),
        ("0", True, WARNING, "net.bridge.bridge-nf-call-iptables is 0"),
    ],
)
def test_a_bridge_matters_where_there_are_services(
    *, call: str | None, has_services: bool, severity: Severity | None, what: str
) -> None:
    found = system.judge_bridge(call=call, has_services=has_services)
    expect(found, severity, what, "modprobe br_netfilter")


@pytest.mark.parametrize(
    ("liberal", "is_fast", "severity"),
    [("1", True, None), (None, True, None), ("0", False, None), ("0", True, ERROR)],
)
def test_conntrack_must_forgive_what_it_does_not_see(
    *, liberal: str | None, is_fast: bool, severity: Severity | None
) -> None:
    found = system.judge_conntrack(liberal=liberal, is_fast=is_fast)
    expect(found, severity, "nf_conntrack_tcp_be_liberal is 0", "be_liberal=1")


def sizes(**changes: Any) -> mtu.Sizes:
    usual = mtu.Sizes(uplink=1500, overlay=1450, overhead=50, told=1450, pods={"cni0": 1450})
    return replace(usual, **changes)


@pytest.mark.parametrize(
    ("changes", "severity", "what", "cure"),
    [
        ({}, None, "", ""),
        ({"overlay": 1400, "pods": {"veth1": 1400}, "told": 1400}, None, "", ""),
        ({"uplink": 0, "overlay": 0}, None, "", ""),
        (
            {"uplink": 1450},
            ERROR,
            "MTU of flannel.1 is 1450, but the uplink's 1450 leaves 1400",
            "ip link set dev flannel.1 mtu 1400",
        ),
        (
            {"pods": {"cni0": 1450, "veth1": 1500, "veth2": 9000}},
            WARNING,
            "MTU of veth1, veth2 is 9000, larger than the 1450",
            "ip link set dev veth1 mtu 1450",
        ),
        (
            {"overlay": 0, "overhead": 0, "told": 1500, "pods": {"cni0": 1501}},
            WARNING,
            "MTU of cni0 is 1501, larger than the 1500",
            "ip link set dev cni0 mtu 1500",
        ),
        ({"told": 1500}, WARNING, "subnet.env says MTU 1500, the overlay carries 1450", "restart"),
    ],
)
def test_mtus_go_together(
    changes: dict[str, Any], severity: Severity | None, what: str, cure: str
) -> None:
    expect(mtu.judge(sizes(**changes), overlay="flannel.1"), severity, what, cure)


@pytest.mark.parametrize(
    ("outer", "offloaded", "severity"),
    [(False, True, None), (True, False, None), (True, True, WARNING)],
)
def test_outer_checksums_left_to_hardware(
    *, outer: bool, offloaded: bool, severity: Severity | None
) -> None:
    found = offload.judge(device="flannel.1", outer=outer, offloaded=offloaded)
    expect(found, severity, "flannel.1 sends outer UDP checksums", "ip link del flannel.1")


def test_who_holds_the_tunnels_port_is_named() -> None:
    holder = Process(77, "nc", "nc -ul 8472")
    found = ports.judge_holders(8472, [holder])
    expect(found, ERROR, "UDP port 8472 is held by nc (pid 77)", "kill 77")
    expect(ports.judge_holders(8285, [KERSEYD]), None)


@pytest.mark.parametrize(
    ("other", "severity"),
    [
        (vxlan("cilium_vxlan", ifindex=9, external=True), ERROR),
        (vxlan("cilium_vxlan", ifindex=9, external=True, up=False), None),
        (vxlan("cilium_vxlan", ifindex=9, external=True, port=4789), None),
        (vxlan("flannel.7", ifindex=9, vni=7), None),
    ],
)
def test_a_device_that_takes_every_vni_off_our_port(other: Any, severity: Severity | None) -> None:
    found = ports.judge_devices(vxlan(), [vxlan(), other])
    expect(found, severity, "cilium_vxlan takes every tunnel packet on UDP port 8472", "port")


def device(name: str, kind: str) -> Device:
    return Device(ifindex=9, name=name, kind=kind, mtu=1450)


@pytest.mark.parametrize(
    ("found", "owned", "severity", "why"),
    [
        (device("flannel.1", "vxlan"), set(), None, ""),
        (device("cni0", "bridge"), set(), None, ""),
        (device("kersey-room.1", "vxlan"), {"kersey-room.1"}, None, ""),
        (device("flannel.7", "vxlan"), set(), WARNING, "flannel, it seems"),
        (device("flannel0", "tun"), set(), WARNING, "flannel, it seems"),
        (device("flannel.7", "vxlan"), {"flannel.7"}, WARNING, "an earlier or a second Kersey"),
    ],
)
def test_overlay_devices_of_others_are_named(
    found: Device, owned: set[str], severity: Severity | None, why: str
) -> None:
    findings = list(leftovers.judge_devices(node_view(), [found], owned))
    expect(findings, severity, f"device {found.name}", f"ip link del {found.name}")
    assert all(why in each.why for each in findings)


def test_a_running_flannel_is_named() -> None:
    found = leftovers.judge_processes([KERSEYD, Process(5, "flanneld", "/opt/bin/flanneld")])
    expect(found, ERROR, "flanneld runs here (pid 5)", "kill 5")


@pytest.mark.parametrize(
    ("address", "severity"),
    [("10.244.1.1/24", None), ("192.168.0.1/24", None), ("10.244.2.1/24", ERROR)],
)
def test_a_bridge_of_another_subnet_is_named(address: str, severity: Severity | None) -> None:
    found = leftovers.judge_bridge("cni0", [IPv4Interface(address)], SUBNET, NETWORK)
    expect(found, severity, f"cni0 has {address}, which is not of this node's subnet", "del cni0")


@pytest.mark.parametrize(
    ("route", "device_", "protocol", "severity"),
    [
        ("10.244.2.0/24", "flannel.1", 3, None),
        ("10.244.2.0/24", "eth0", 75, None),
        ("10.244.1.0/24", "cni0", 2, None),
        ("10.244.1.9/32", "veth1", 3, None),
        ("192.168.0.0/16", "eth0", 3, None),
        ("10.0.0.0/8", "eth0", 3, None),
        ("10.244.2.0/24", "eth0", 3, WARNING),
        ("10.244.0.0/16", "flannel0", 3, WARNING),
    ],
)
def test_routes_that_take_pods_packets_elsewhere(
    route: str, device_: str, protocol: int, severity: Severity | None
) -> None:
    found = leftovers.judge_route(IPv4Network(route), device_, protocol, node_view())
    expect(found, severity, f"a route to {route}", f"ip route del {route} dev {device_}")


def test_pins_of_other_daemons_are_noted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("instance-1", "instance-2"):
        (tmp_path / name / "maps-1").mkdir(parents=True)
    found = leftovers.judge_pins(tmp_path / "instance-1", tmp_path)
    expect(found, NOTE, f"{tmp_path}/instance-2 holds pins", "kersey cleanup")
    expect(leftovers.judge_pins(tmp_path / "x", tmp_path / "absent"), None)


@pytest.mark.parametrize(
    ("rule", "cure"),
    [
        ("iptables -A FORWARD -j REJECT", "iptables -D FORWARD -j REJECT"),
        ("iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT"),
        ("nft inet fw forward: drop", "nft -a list chain inet fw forward"),
    ],
)
def test_a_hazard_comes_with_what_removes_it(rule: str, cure: str) -> None:
    twice = [Hazard(rule, "because")] * 2  # seen by two engines
    expect(rules.judge_hazards(twice), ERROR, "a rule stops all forwarded packets", cure)


def ruleset(*expressions: dict[str, Any], hook: str = "forward", family: str = "inet") -> str:
    place = {"family": family, "table": "fw"}
    return json.dumps(
        {
            "nftables": [
                {"metainfo": {"version": "1"}},
                {"chain": {**place, "name": "c", "type": "filter", "hook": hook, "prio": 0}},
                {"chain": {**place, "name": "policy"}},
                {"rule": {**place, "chain": "c", "handle": 4, "expr": list(expressions)}},
                {"rule": {**place, "chain": "policy", "handle": 5, "expr": list(expressions)}},
            ]
        }
    )


def matches(field: str, right: object, protocol: str = "ip", op: str = "==") -> dict[str, Any]:
    left = {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": op, "left": left, "right": right}}


DROP = {"drop": None}
POD_PREFIX = {"prefix": {"addr": "10.244.3.0", "len": 24}}


@pytest.mark.parametrize(
    ("document", "severity"),
    [
        (ruleset(matches("saddr", POD_PREFIX), DROP), WARNING),
        (ruleset(matches("daddr", "10.244.3.9"), {"reject": {"type": "icmp"}}), WARNING),
        (
            ruleset(matches("daddr", "10.244.3.9"), {"xt": {"type": "target", "name": "REJECT"}}),
            WARNING,
        ),
        (ruleset(matches("saddr", POD_PREFIX), {"accept": None}), None),
        (ruleset(matches("saddr", "192.0.2.1"), DROP), None),
        (ruleset(matches("saddr", POD_PREFIX, op="!="), DROP), None),
        (ruleset(matches("saddr", POD_PREFIX), DROP, hook="input"), None),
        (ruleset(matches("saddr", POD_PREFIX), DROP, family="ip6"), None),
        ("", None),
    ],
)
def test_a_rule_that_names_pods_is_found(document: str, severity: Severity | None) -> None:
    found = rules.judge_pod_stops(rules.stops_of(document), NETWORK)
    expect(found, severity, "nft inet fw c: ip ", "nft delete rule inet fw c handle 4")


@pytest.mark.parametrize(
    ("right", "hook", "severity"),
    [
        (8472, "input", ERROR),
        (8472, "output", ERROR),
        (8472, "forward", None),
        (8473, "input", None),
        ({"set": [53, 8472]}, "input", ERROR),
        ({"range": [8000, 9000]}, "input", ERROR),
        ({"set": [53, {"range": [1, 8471]}]}, "input", None),
        ("@ports", "input", None),
    ],
)
def test_a_rule_that_closes_the_tunnels_port_is_found(
    right: object, hook: str, severity: Severity | None
) -> None:
    document = ruleset(matches("dport", right, protocol="udp"), DROP, hook=hook)
    found = rules.judge_port_stops(rules.stops_of(document), 8472)
    expect(found, severity, "a rule stops tunnel packets: nft inet fw c: udp dport", "handle 4")


@pytest.mark.parametrize(
    ("missing", "cure"),
    [
        ("/usr/bin/python3 has no module bcc: install ...", "apt-get install python3-bpfcc"),
        ("uid 1000 lacks CAP_NET_ADMIN and CAP_SYS_ADMIN", "CAP_SYS_ADMIN"),
        ("kernel 5.4 is too old: 5.13 is needed", "a newer kernel"),
        ("something new", "none known"),
    ],
)
def test_what_the_fast_path_lacks_comes_with_a_cure(missing: str, cure: str) -> None:
    expect(programs.judge_lacks([missing]), WARNING, missing, cure)


@pytest.mark.parametrize(
    ("directory", "cure"),
    [("/sys/fs/bpf/kersey", "mount -t bpf bpf /sys/fs/bpf,"), ("/x/y", "mount -t bpf bpf /x/y,")],
)
def test_a_missing_bpf_file_system_names_its_mount(directory: str, cure: str) -> None:
    expect([programs.no_file_system(Path(directory))], WARNING, directory, cure)


@pytest.mark.parametrize(
    ("mode", "trouble", "severity", "what"),
    [
        ("bpf", "", None, ""),
        ("bpf", "nothing is pinned", WARNING, "are not in /pins: nothing is pinned"),
        ("netlink", "", WARNING, "kerseyd runs without a fast path: no bcc"),
    ],
)
def test_the_mode_of_the_daemon(
    mode: str, trouble: str, severity: Severity | None, what: str
) -> None:
    expect(programs.judge_mode(mode, "no bcc", Path("/pins"), trouble), severity, what)


@pytest.mark.parametrize("why", sorted(NOT_WANTED))
def test_no_fast_path_that_nobody_wants_is_nobodys_trouble(why: str) -> None:
    expect(programs.judge_mode("netlink", why, Path("/pins"), "nothing is pinned"), None)
    state = told(datapath=ToldDatapath("netlink", why), options=ToldOptions(datapath="auto"))
    expect(programs.check(node_view(told=state)), None)


def test_a_machine_that_lacks_something_is_told_where_a_fast_path_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    state = told(datapath=ToldDatapath("netlink", "no bcc"), options=ToldOptions(datapath="auto"))
    found = [finding.what for finding in programs.check(node_view(told=state))]
    assert "kerseyd runs without a fast path: no bcc" in found


def test_forged_packets_are_counted_by_reason() -> None:
    verdicts = {"from_uplink": {"fast": 9, "unknown_node": 1500}, "from_pod": {"pod_tunnel": 2}}
    found = programs.judge_senders(verdicts)
    expect(found, NOTE, "1,500 unknown_node, 2 pod_tunnel", "kersey peers")
    expect(programs.judge_senders({"from_uplink": {"fast": 9, "stale": 4}}), None)


@pytest.mark.parametrize(
    ("recent", "old", "severity"),
    [(749, 251, None), (750, 0, WARNING), (0, 1000, None)],
)
def test_only_flows_in_use_fill_the_map(recent: int, old: int, severity: Severity | None) -> None:
    flows = [flow(ages=(59.0, None))] * recent + [flow(ages=(61.0, None))] * old
    found = programs.judge_flows(flows, 1000)
    expect(found, severity, "750 flows in use within 60 s, 75 %", "--max-flows=4000")


def test_two_daemons_in_one_namespace_are_named() -> None:
    found = daemons.judge_number([KERSEYD, OTHER], ours=10)
    expect(found, WARNING, "2 kerseyd run in this network namespace (pids 10, 20)", "kill 20")
    expect(daemons.judge_number([KERSEYD], ours=10), None)


def test_silence_is_told_apart_from_absence() -> None:
    stopped = daemons.judge_silence("no kerseyd runs here", [], is_stopped=True)
    expect(stopped, ERROR, "no kerseyd runs here", "systemctl start kerseyd")
    elsewhere = daemons.judge_silence("no kerseyd runs here", [KERSEYD], is_stopped=True)
    expect(elsewhere, ERROR, "but kerseyd runs as pid 10", "--state-dir")
    expect(daemons.judge_silence("for root only", [], is_stopped=False), None)


def told(**fields: Any) -> ToldStatus:
    return msgspec.structs.replace(ToldStatus("1", ready=True), **fields)


@pytest.mark.parametrize(
    ("state", "severity", "what"),
    [
        (told(), None, ""),
        (told(silent_seconds=31.0), ERROR, "control loop has been silent for 31 s"),
        (told(ready=False, store=ToldStore(trouble="refused")), ERROR, "not ready: refused"),
        (told(ready=False, store=ToldStore(connected=True)), ERROR, "first snapshot"),
        (told(lease=ToldLease(1.0, "taken")), ERROR, "our lease: taken"),
        (told(skipped_records=2), WARNING, "2 records"),
    ],
)
def test_what_the_daemon_says_of_itself(
    state: ToldStatus, severity: Severity | None, what: str
) -> None:
    expect(daemons.judge_state(state), severity, what)


def test_a_peer_that_is_not_programmed_is_named_with_its_reason() -> None:
    state = told(peers=ToldPeers(1, 0, {"10.244.9.0/24": "BackendType: got 'x'"}))
    expect(daemons.judge_peers(state), ERROR, "peer 10.244.9.0/24 is not programmed: BackendType")


NOW = 1_000_000.0
DAY = 86_400.0


@pytest.mark.parametrize(
    ("noted", "stored", "severity", "what"),
    [
        (NOW + DAY, NOW + DAY + 1, None, ""),
        (None, NOW + DAY, None, ""),
        (NOW + DAY, None, None, ""),
        (NOW + DAY, NOW + DAY + 7200, WARNING, "jumped forward by 7200 s"),
        (NOW + DAY, NOW + DAY - 7200, WARNING, "our lease ends 7200 s before kerseyd expects"),
        (NOW + 1700, NOW + 1700, ERROR, "our lease ends in 1700 s and was not renewed"),
        (NOW + 1900, NOW + 1900, None, ""),
    ],
)
def test_clock_and_lease_agree(
    noted: float | None, stored: float | None, severity: Severity | None, what: str
) -> None:
    found = store.judge_clock(told=noted, stored=stored, now=NOW, margin=3600.0)
    expect(found, severity, what)


def test_a_store_that_only_the_daemon_can_ask_is_no_fault() -> None:
    expect([store.judge_silence("down", "http://a:1", knows=True)], NOTE, "http://a:1", "--etcd-")
    lost = store.judge_silence("down", "http://a:1, http://b:1", knows=False)
    expect([lost], ERROR, "down", "etcdctl --endpoints=http://a:1,http://b:1 endpoint health")


def test_of_another_store_than_etcd_the_daemon_knows() -> None:
    state = told(options=ToldOptions(store="kubernetes"), store=ToldStore(trouble="410 Gone"))
    view = node_view(told=state)
    expect(store.check(EtcdOptions(), view), ERROR, "(kubernetes) does not answer: 410 Gone")
    connected = msgspec.structs.replace(state, store=ToldStore(connected=True))
    expect(store.check(EtcdOptions(), node_view(told=connected)), None)


def test_a_config_of_another_network_needs_a_restart() -> None:
    config = parse_network_config(b'{"Network": "10.9.0.0/16"}')
    view = node_view(told=told(network="10.244.0.0/16"))
    expect(store.judge_config(config, view, "http://a"), WARNING, "10.9.0.0/16, kerseyd works wit")
    same = node_view(told=told(network="10.9.0.0/16"))
    expect(store.judge_config(config, same, "http://a"), None)


def test_a_lease_that_the_store_does_not_have() -> None:
    expect(store.judge_lease("10.244.1.0/24", held=False), ERROR, "no lease for 10.244.1.0/24")
    expect(store.judge_lease("10.244.1.0/24", held=True), None)


WIRE = reach.Wire(mtu=1450, overhead=50, port=8472)


def answers(
    node: str = "sS", tunnel: str | None = "sS", *, datagram: bool | None = True, path: int = 0
) -> reach.Reach:
    """Return what a peer answered: `s` for a small packet, `S` for a whole one."""
    return reach.Reach(
        subnet="10.244.2.0/24",
        address="198.18.0.12",
        node="s" in node,
        whole_node="S" in node,
        tunnel=None if tunnel is None else "s" in tunnel,
        whole_tunnel=None if tunnel is None else "S" in tunnel,
        datagram=datagram,
        path=path,
    )


@pytest.mark.parametrize(
    ("reached", "severity", "what", "cure"),
    [
        (answers(), None, "", ""),
        (answers(tunnel=None, datagram=None), None, "", ""),
        (answers(node=""), None, "", ""),  # nodes may refuse pings
        (answers(node="", tunnel="", datagram=False), ERROR, "no answer from node", "etcdctl del"),
        (answers(node="", tunnel=None, datagram=None), ERROR, "no answer from node", "ping"),
        (
            answers(tunnel="", datagram=False),
            ERROR,
            "nothing comes back through the tunnel from node 198.18.0.12 (10.244.2.0/24)",
            "udp dport 8472 accept",
        ),
        (
            answers(node="s", tunnel="s", path=1400),
            ERROR,
            "does not carry 1500 bytes; it carries packets of 1400 bytes",
            "mtu 1400",
        ),
        (answers(node="s", tunnel="sS"), ERROR, "it carries less", "ping -M do"),
        (answers(node="s", tunnel=None, datagram=None, path=900), ERROR, "900 bytes", "mtu 900"),
        (answers(tunnel="s"), WARNING, "packets of 1450 bytes do not come back", "doctor"),
        (answers(datagram=False), WARNING, "UDP datagrams are not answered", "tx-checksum-ip"),
    ],
)
def test_what_a_peers_answers_mean_together(
    reached: reach.Reach, severity: Severity | None, what: str, cure: str
) -> None:
    expect(reach.judge([reached], WIRE), severity, what, cure)


def test_peers_with_the_same_fault_share_a_finding() -> None:
    many = [answers(tunnel="", datagram=False)] * 6
    found = list(reach.judge([*many, answers(), answers(node="", tunnel="")], WIRE))
    assert [each.severity for each in found] == [ERROR, ERROR]
    assert "and 2 more" in found[0].what


def test_a_check_that_cannot_be_made_is_a_note_and_keeps_no_other() -> None:
    def broken() -> Iterable[Finding]:
        yield warning("seen", "why", "fix")
        raise KernelError("rtnetlink dump 18: EPERM")

    results = list(examine([Check("one", broken), Check("two", list)]))
    assert [each.name for each in results] == ["one", "two"]
    assert [each.what for each in results[0].findings] == [
        "seen",
        "not checked: rtnetlink dump 18: EPERM",
    ]
    assert results[1].findings == ()


def test_the_worst_finding_decides() -> None:
    faults = [note("n", "", ""), error("e", "", ""), warning("w", "", "")]
    assert worst([Result("a", tuple(faults[:1])), Result("b", tuple(faults))]) is ERROR
    assert worst([Result("a", ())]) is None


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
