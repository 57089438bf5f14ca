"""The rules in a real kernel: content, repair, atomicity, what packets see, and who may share."""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import NamedTuple

import pytest
from kersey_control.errors import KernelError
from kersey_control.masquerade import Rules, open_rules, remove_all_rules
from kersey_control.rules.base import Engine, desired_rules
from kersey_control.rules.iptables import Iptables
from kersey_control.rules.nftables import Nftables
from kersey_control.ruleset_monitor import RulesetMonitor

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)

IPTABLES_NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" \
-j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" \
-j MASQUERADE --random-fully
COMMIT
"""
IPTABLES_FILTER = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
NFTABLES = """\
table ip flannel-ipv4 {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld masq"
		ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return comment "flanneld masq"
		ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return comment "flanneld masq"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return comment "flanneld masq"
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random comment "flanneld masq"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept comment "flanneld forward"
		ip daddr 10.5.0.0/16 accept comment "flanneld forward"
	}
}
"""
NFT_LIKE_FLANNEL = """\
add table ip flannel-ipv4 { comment "rules for flannel-ipv4"; }
add table ip6 flannel-ipv6 { comment "rules for flannel-ipv6"; }
add chain ip flannel-ipv4 forward { type filter hook forward priority 0; comment "a"; }
flush chain ip flannel-ipv4 forward
add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept
add rule ip flannel-ipv4 forward ip daddr 10.5.0.0/16 accept
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100; comment "b"; }
flush chain ip flannel-ipv4 postrtg
add rule ip flannel-ipv4 postrtg meta mark 0x4000 return
"""

DROPPING_FIREWALL = """\
nft add table inet fw
nft add chain inet fw f '{ type filter hook forward priority 5; policy drop; }'
"""
DESIRED = desired_rules(
    network=IPv4Network("10.5.0.0/16"),
    subnet=IPv4Network("10.5.1.0/24"),
    masquerade=True,
    forward=True,
    random_fully=True,
)


def sh(command: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["sh", "-ec", command], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def saved(table: str, command: str = "iptables") -> str:
    """Return the table as saved, without the comment lines, which hold the time."""
    lines = sh(f"{command}-save -t {table}").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def nft_table() -> str:
    return sh("nft list table ip flannel-ipv4")


def keeper(
    *,
    nftables: bool,
    subnet: str = "10.5.1.0/24",
    masquerade: bool = True,
    forward: bool = True,
) -> Rules:
    return open_rules(
        nftables=nftables,
        network=IPv4Network("10.5.0.0/16"),
        subnet=IPv4Network(subnet),
        masquerade=masquerade,
        forward=forward,
        random_fully=True,
    )


def assert_golden(*, nftables: bool) -> None:
    if nftables:
        assert nft_table() == NFTABLES
    else:
        assert saved("nat") == IPTABLES_NAT
        assert saved("filter") == IPTABLES_FILTER


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Run the calling thread, and what it starts or opens, in another network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.setns(namespace, CLONE_NEWNET) == 0
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


@contextlib.contextmanager
def fresh_namespace() -> Iterator[int]:
    """Make a namespace that lives while its descriptor, or a socket in it, is open."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.setns(before, CLONE_NEWNET) == 0
    os.close(before)
    yield made
    os.close(made)


@pytest.fixture(autouse=True)
def node() -> Iterator[None]:
    with fresh_namespace() as namespace, inside(namespace):
        yield


@pytest.fixture(params=[False, True], ids=["iptables", "nftables"])
def nftables(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_applied_rules_are_listed_exactly_as_written_down(*, nftables: bool) -> None:
    rules = keeper(nftables=nftables)
    assert rules.ensure()
    assert_golden(nftables=nftables)


def test_rules_that_are_right_are_left_alone(*, nftables: bool) -> None:
    rules = keeper(nftables=nftables)
    rules.ensure()
    with RulesetMonitor(lambda: pytest.fail("nothing was to be changed")) as monitor:
        assert not rules.ensure()
    assert monitor.failures == 0


def test_legacy_iptables_lists_the_same_rules() -> None:
    rules = Rules(engine=Iptables("iptables-legacy"), desired=DESIRED)
    assert rules.ensure()
    assert not rules.ensure()
    assert saved("nat", "iptables-legacy") == IPTABLES_NAT
    assert saved("filter", "iptables-legacy") == IPTABLES_FILTER


IPTABLES_DAMAGE = {
    "rule deleted": "iptables -t nat -D FLANNEL-POSTRTG 3",
    "chain flushed": "iptables -t nat -F FLANNEL-POSTRTG",
    "table flushed": "iptables -t nat -F; iptables -t nat -X; iptables -F",
    "rules re-ordered": "iptables -t nat -D FLANNEL-POSTRTG 1; iptables -t nat -A FLANNEL-POSTRTG "
    '-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
    "foreign rule above ours": "iptables -t nat -I FLANNEL-POSTRTG -j RETURN",
    "foreign rule below ours": "iptables -A FLANNEL-FWD -s 198.18.0.9 -j DROP",
    "rule that iptables cannot print": "nft insert rule ip nat FLANNEL-POSTRTG "
    "numgen random mod 2 0 return",
    "rule doubled": "iptables -A FLANNEL-FWD -s 10.5.0.0/16 "
    '-m comment --comment "flanneld forward" -j ACCEPT',
    "jump removed": "iptables -t nat -D POSTROUTING 1",
    "jump doubled": 'iptables -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
    "jump restricted": "iptables -D FORWARD 1; iptables -A FORWARD -i lo -j FLANNEL-FWD",
    "tables deleted": "nft flush ruleset",
}
NFTABLES_DAMAGE = {
    "chain flushed": "nft flush chain ip flannel-ipv4 postrtg",
    "chain deleted": "nft flush chain ip flannel-ipv4 forward; "
    "nft delete chain ip flannel-ipv4 forward",
    "foreign rule above ours": "nft insert rule ip flannel-ipv4 postrtg return",
    "rule doubled": "nft add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept",
    "rules re-ordered": "nft delete rule ip flannel-ipv4 forward handle $(nft -a list chain ip "
    "flannel-ipv4 forward | sed -n 's/.*saddr.*handle //p'); "
    "nft add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept",
    "policy drop": "nft chain ip flannel-ipv4 forward '{ policy drop; }'",
    "foreign chain": "nft add chain ip flannel-ipv4 evil '{ type filter hook forward priority -5;"
    " policy drop; }'",
    "foreign set": "nft add set ip flannel-ipv4 s '{ type ipv4_addr; }'",
    "table dormant": "nft add table ip flannel-ipv4 '{ flags dormant; }'",
    "table deleted": "nft flush ruleset",
}


@pytest.mark.parametrize("damage", IPTABLES_DAMAGE.values(), ids=IPTABLES_DAMAGE)
def test_one_ensure_repairs_iptables(damage: str) -> None:
    rules = keeper(nftables=False)
    rules.ensure()
    sh(damage)
    assert rules.ensure().reasons
    assert not rules.ensure()
    assert_golden(nftables=False)


@pytest.mark.parametrize("damage", NFTABLES_DAMAGE.values(), ids=NFTABLES_DAMAGE)
def test_one_ensure_repairs_nftables(damage: str) -> None:
    rules = keeper(nftables=True)
    rules.ensure()
    sh(damage)
    assert rules.ensure().reasons
    assert not rules.ensure()
    assert_golden(nftables=True)


def test_a_jump_keeps_its_place_between_rules_of_others() -> None:
    rules = keeper(nftables=False)
    sh("iptables -A FORWARD -i a -j ACCEPT")
    rules.ensure()
    sh("iptables -A FORWARD -i b -j ACCEPT; iptables -F FLANNEL-FWD")
    rules.ensure()
    assert [line.split()[-1] for line in sh("iptables -S FORWARD").splitlines()[1:]] == [
        "ACCEPT",
        "FLANNEL-FWD",
        "ACCEPT",
    ]


def test_another_subnet_replaces_the_content(*, nftables: bool) -> None:
    keeper(nftables=nftables, subnet="10.5.77.0/24").ensure()
    assert keeper(nftables=nftables).ensure()
    assert_golden(nftables=nftables)


def test_a_part_switched_off_is_removed(*, nftables: bool) -> None:
    keeper(nftables=nftables).ensure()
    assert keeper(nftables=nftables, masquerade=False).ensure()
    ruleset = sh("nft list ruleset")
    assert "masquerade" not in ruleset
    assert "accept" in ruleset
    assert keeper(nftables=nftables, masquerade=False, forward=False).ensure()
    assert "flannel" not in sh("nft list ruleset").lower()


def test_remove_leaves_rules_of_others_as_they_were(*, nftables: bool) -> None:
    sh("iptables -t nat -A POSTROUTING -o x -j MASQUERADE")
    sh("iptables -N MINE; iptables -A MINE -j DROP")
    sh("iptables -A FORWARD -i y -j MINE; nft add table ip mine; nft add chain ip mine c")
    # A rule that only nft can print hides the whole table from iptables-save.
    sh("nft add chain ip nat odd; nft add rule ip nat odd numgen random mod 2 0 return")
    before = sh("nft list ruleset")
    rules = keeper(nftables=nftables)
    rules.ensure()
    assert sh("nft list ruleset") != before
    rules.remove()
    assert sh("nft list ruleset") == before
    rules.remove()


def test_removing_also_takes_jumps_from_chains_of_others() -> None:
    rules = keeper(nftables=False)
    rules.ensure()
    sh("iptables -N MINE; iptables -A MINE -p tcp -g FLANNEL-FWD; iptables -A MINE -j RETURN")
    rules.remove()
    assert "FLANNEL" not in sh("iptables-save")
    assert sh("iptables -S MINE").splitlines() == ["-N MINE", "-A MINE -j RETURN"]


def test_switching_the_engine_leaves_nothing_of_the_other(*, nftables: bool) -> None:
    keeper(nftables=not nftables).ensure()
    rules = keeper(nftables=nftables)
    rules.ensure()
    rules.remove_other()
    assert_golden(nftables=nftables)
    ruleset = sh("nft list ruleset")
    assert ("FLANNEL" in ruleset, "flannel-ipv4" in ruleset) == (not nftables, nftables)


def test_switching_the_engine_also_cleans_the_other_iptables_variant(*, nftables: bool) -> None:
    sh("iptables-legacy-restore", IPTABLES_NAT + IPTABLES_FILTER)
    rules = keeper(nftables=nftables)
    rules.ensure()
    rules.remove_other()
    assert "FLANNEL" not in sh("iptables-legacy-save")
    assert_golden(nftables=nftables)


def test_cleaning_up_does_not_bring_unused_legacy_tables_into_being() -> None:
    keeper(nftables=False).ensure()
    remove_all_rules()
    assert sh("iptables-legacy-save") == ""
    assert "flannel" not in sh("nft list ruleset").lower()


def test_flannels_own_nft_rules_are_taken_over_and_can_be_taken_back() -> None:
    sh("nft -f -", NFT_LIKE_FLANNEL)
    rules = keeper(nftables=True)
    assert rules.ensure()
    assert_golden(nftables=True)
    sh("nft -f -", NFT_LIKE_FLANNEL)
    assert nft_table().count("accept") == 4
    assert "masquerade" not in nft_table()
    remove_all_rules()
    assert sh("nft list ruleset") == ""


def test_flannels_own_iptables_rules_are_taken_over_without_a_change() -> None:
    sh("iptables-restore --noflush", IPTABLES_NAT + IPTABLES_FILTER)
    assert not keeper(nftables=False).ensure()


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(KernelError, match=r"iptables-absent: not found.*package 'iptables'"):
        Iptables("iptables-absent").differences(DESIRED)


def test_a_refusal_carries_what_the_program_said() -> None:
    sh("nft add table ip nat; nft add chain ip nat POSTROUTING")  # a chain without its hook
    with pytest.raises(KernelError, match=r"^iptables-restore .*: exit status 4: .*POSTROUTING"):
        keeper(nftables=False).ensure()


ODD_NAT_RULE = "rule ip nat POSTROUTING numgen random mod 2 0 return"


def test_an_odd_rule_after_our_jump_hinders_neither_check_nor_repair_nor_removal() -> None:
    rules = keeper(nftables=False)
    rules.ensure()
    sh(f"nft add {ODD_NAT_RULE}; nft add rule ip filter FORWARD numgen random mod 2 0 accept")
    assert not rules.ensure()
    sh("iptables -t nat -F FLANNEL-POSTRTG")
    assert rules.ensure()
    assert sh("nft list table ip nat").count("jump FLANNEL-POSTRTG") == 1
    assert rules.hazards() == ()
    rules.remove()
    assert "FLANNEL" not in sh("nft list ruleset")
    assert sh("nft list ruleset").count("numgen random mod 2 0") == 2


def test_an_odd_rule_before_our_jump_is_reported_while_the_rules_are_in_place() -> None:
    sh(f"iptables -t nat -A POSTROUTING -o x -j ACCEPT; nft add {ODD_NAT_RULE}")
    with pytest.raises(KernelError, match=r"-C POSTROUTING .*: exit status 3: "):
        keeper(nftables=False).ensure()
    assert sh("nft list table ip nat").count("masquerade") == 2
    assert sh("nft list table ip nat").count("jump FLANNEL-POSTRTG") == 1


def test_a_reject_before_our_jump_is_a_hazard() -> None:
    sh("iptables -A FORWARD -j REJECT")
    rules = keeper(nftables=False)
    rules.ensure()
    (hazard,) = rules.hazards()
    assert hazard.rule.startswith("iptables -A FORWARD -j REJECT")


def test_a_policy_that_our_jump_comes_before_is_no_hazard_in_iptables() -> None:
    sh("iptables -P FORWARD DROP")
    rules = keeper(nftables=False)
    rules.ensure()
    assert rules.hazards() == ()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("iptables -P FORWARD DROP", "nft ip filter FORWARD: policy drop"),
        ("iptables -A FORWARD -j REJECT", "nft ip filter FORWARD: reject"),
        ("iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD DROP"),
        (
            DROPPING_FIREWALL,
            "nft inet fw f: policy drop",
        ),
    ],
)
def test_what_an_nft_accept_cannot_override_is_a_hazard(setting: str, expected: str) -> None:
    sh(setting)
    rules = keeper(nftables=True)
    rules.ensure()
    assert [hazard.rule for hazard in rules.hazards()] == [expected]
    assert keeper(nftables=True, forward=False).hazards() == ()


class Net(NamedTuple):
    """Descriptors of the namespaces around the node."""

    pod: int
    outside: int


@pytest.fixture
def net() -> Iterator[Net]:
    """Join pod 10.5.1.2, the node, and an outside that also plays the remote pod 10.5.2.9."""
    with fresh_namespace() as pod, fresh_namespace() as outside:
        for name, namespace, near, far in (
            ("pod0", pod, "10.5.1.1/24", "10.5.1.2/24"),
            ("up0", outside, "198.18.0.1/24", "198.18.0.2/24"),
        ):
            far_end = f"/proc/{os.getpid()}/fd/{namespace}"
            sh(f"ip link add {name} type veth peer name far0 netns {far_end}")
            sh(f"ip addr add {near} dev {name}; ip link set {name} up")
            with inside(namespace):
                sh(f"ip addr add {far} dev far0; ip link set far0 up; ip link set lo up")
                sh(f"ip route add default via {near.split('/')[0]}")
        sh("echo 1 >/proc/sys/net/ipv4/ip_forward; ip link set lo up")
        sh("ip addr add 198.18.9.9/32 dev lo; ip route add 10.5.2.0/24 via 198.18.0.2")
        with inside(outside):
            sh("ip addr add 10.5.2.9/32 dev lo")
        yield Net(pod, outside)


def receiver(namespace: int, address: str) -> socket.socket:
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 9999))
    sock.settimeout(10)
    return sock


def source_seen(at: socket.socket, *, source: str, namespace: int | None = None) -> str:
    """Send a datagram of a new flow to the socket and return the source address it came with."""
    with inside(namespace) if namespace is not None else contextlib.nullcontext():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind((source, 0))
        sender.sendto(b"?", at.getsockname())
        return str(at.recvfrom(16)[1][0])


def test_packets_are_masqueraded_exactly_where_they_leave_the_network(
    *, nftables: bool, net: Net
) -> None:
    keeper(nftables=nftables).ensure()
    with (
        receiver(net.outside, "198.18.0.2") as outside,
        receiver(net.outside, "10.5.2.9") as remote_pod,
        receiver(net.pod, "10.5.1.2") as pod,
    ):
        assert source_seen(outside, source="10.5.1.2", namespace=net.pod) == "198.18.0.1"
        assert source_seen(remote_pod, source="10.5.1.2", namespace=net.pod) == "10.5.1.2"
        assert source_seen(pod, source="10.5.2.9", namespace=net.outside) == "10.5.2.9"
        assert source_seen(pod, source="198.18.0.2", namespace=net.outside) == "198.18.0.2"
        assert source_seen(remote_pod, source="198.18.9.9") == "198.18.0.1"
        # kube-proxy's bit may come with others in the mark.
        sh("iptables -t mangle -A PREROUTING -j MARK --set-mark 0x14000")
        assert source_seen(outside, source="10.5.1.2", namespace=net.pod) == "10.5.1.2"


def while_reapplying(engine: Engine, look: Callable[[], object]) -> int:
    """Apply the rules 50 times while `look` runs in a loop; return how often it ran."""
    engine.apply(DESIRED)
    failures: list[BaseException] = []

    def reapply() -> None:
        try:
            for _ in range(50):
                engine.apply(DESIRED)
        except BaseException as error:  # noqa: BLE001  # shown by the thread that asserts
            failures.append(error)

    writer = threading.Thread(target=reapply)
    writer.start()
    looks = 0
    while writer.is_alive():
        look()
        looks += 1
    writer.join()
    assert failures == []
    return looks


def test_a_reader_never_sees_an_incomplete_iptables_chain() -> None:
    def look() -> None:
        assert saved("nat") == IPTABLES_NAT

    assert while_reapplying(Iptables(), look) > 20


def test_a_reader_never_sees_an_incomplete_nftables_table() -> None:
    def look() -> None:
        assert nft_table() == NFTABLES

    assert while_reapplying(Nftables(), look) > 20


def test_no_new_flow_slips_out_with_a_pod_address_during_a_change(
    *, nftables: bool, net: Net
) -> None:
    engine: Engine = Nftables() if nftables else Iptables()
    with receiver(net.outside, "198.18.0.2") as outside:

        def look() -> None:
            assert source_seen(outside, source="10.5.1.2", namespace=net.pod) == "198.18.0.1"

        assert while_reapplying(engine, look) > 500


class Calls:
    """Count calls and let a test wait for the next one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.count = 0

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, timeout=10), self.count


@pytest.mark.parametrize(
    "change", ["nft add table ip t", "iptables -A FORWARD -j ACCEPT", "nft flush ruleset"]
)
def test_the_monitor_reports_a_change(change: str) -> None:
    sh("nft add table ip before")
    calls = Calls()
    with RulesetMonitor(calls):
        sh(change)
        calls.wait_for(1)


def test_the_monitor_reports_many_changes_in_few_calls_and_none_without_a_change() -> None:
    entered, release = threading.Event(), threading.Event()
    calls = Calls()

    def block_first() -> None:
        entered.set()
        assert release.wait(10)
        calls()

    with RulesetMonitor(block_first):
        sh("nft add table ip t")
        assert entered.wait(10)
        for i in range(5):
            sh(f"nft add chain ip t c{i}")
        release.set()
        calls.wait_for(2)
        sh("nft list ruleset")
    assert calls.count == 2


def test_the_monitor_takes_lost_events_for_a_change() -> None:
    entered, release = threading.Event(), threading.Event()
    calls = Calls()

    def block_first() -> None:
        entered.set()
        assert release.wait(30)
        calls()

    sh("nft add table ip t; nft add chain ip t c")
    with RulesetMonitor(block_first):
        sh("nft add table ip first")
        assert entered.wait(10)
        # More events than the socket holds: the end of the commit is among the lost ones.
        sh("nft -f -", "add rule ip t c counter\n" * 20000)
        release.set()
        calls.wait_for(2)


def test_the_monitor_survives_a_failing_listener() -> None:
    calls = Calls()

    def fail() -> None:
        calls()
        raise ValueError

    with RulesetMonitor(fail) as monitor:
        sh("nft add table ip a")
        calls.wait_for(1)
        sh("nft add table ip b")
        calls.wait_for(2)
    assert monitor.failures == 2


def test_the_monitor_ends_its_thread_and_hears_nothing_afterwards() -> None:
    calls = Calls()
    with RulesetMonitor(calls):
        pass
    assert "ruleset-monitor" not in [thread.name for thread in threading.enumerate()]
    sh("nft add table ip late")
    assert calls.count == 0
