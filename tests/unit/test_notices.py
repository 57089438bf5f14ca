"""What operators are told of a node, and when: never at once, never all at once, never for ever."""

import random
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from kersey_control.notice import Notice
from kersey_control.notices import CLUSTER_RATE, QUIET, REPEAT, SETTLE, Notices, Trouble, troubles
from kersey_control.status import Status

REFUSED = IPv4Network("10.244.9.0/24")


class Watched:
    """A status that is looked at, and all that was told of it."""

    def __init__(self, *, seed: int = 1) -> None:
        self.status = Status()
        self.told: list[Notice] = []
        self._notices = Notices(self.told.append, rng=random.Random(seed))

    def look(self, *times: float) -> list[Notice]:
        """Look at these times; return what was told."""
        self.told.clear()
        for now in times:
            self._notices.look(self.status, now)
        return list(self.told)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def set_to(field: str, value: object) -> Callable[[Status], None]:
    return lambda status: setattr(status, field, value)


def too_large(status: Status) -> None:
    status.mtu, status.pod_mtu = 1350, 1450


@pytest.mark.parametrize(
    ("change", "trouble", "words"),
    [
        (set_to("start_trouble", "node n: podCIDR: got ''"), Trouble.START, "podCIDR"),
        (set_to("lease_trouble", "another podCIDR"), Trouble.LEASE, "another podCIDR"),
        (set_to("skipped", {"n2": "podCIDR: as ours"}), Trouble.NODES, "n2: podCIDR: as ours"),
        (set_to("refused", {REFUSED: "our own address"}), Trouble.PEERS, "10.244.9.0/24: our own"),
        (set_to("fast_path_lack", "no bcc"), Trouble.FAST_PATH_OFF, "no bcc"),
        (set_to("fast_path_troubles", {"admission": "off"}), Trouble.FAST_PATH, "admission: off"),
        (set_to("foreign_filters", frozenset({"bpf"})), Trouble.FILTERS, "(bpf)"),
        (set_to("kernel_trouble", "MTU of flannel.1: got 500"), Trouble.KERNEL, "got 500"),
        (set_to("setup_troubles", {"rules": "no iptables"}), Trouble.SETUP, "rules: no iptables"),
        (set_to("foreign_rules", {"-j DROP": "it stops all"}), Trouble.RULES, "-j DROP: it stops"),
        (too_large, Trouble.MTU, "pods have MTU 1450, the overlay carries 1350"),
        (set_to("config_trouble", "Network: got 1"), Trouble.CONFIG, "Network: got 1"),
    ],
    ids=lambda each: each.name if isinstance(each, Trouble) else "",
)
def test_each_trouble_is_told_and_its_end_too(
    watched: Watched, change: Callable[[Status], None], trouble: Trouble, words: str
) -> None:
    change(watched.status)
    assert list(troubles(watched.status)) == [trouble]
    assert watched.look(0.0, SETTLE - 0.1) == []
    ((reason, message, is_warning),) = watched.look(SETTLE, SETTLE + 1)
    assert (reason, is_warning) == (trouble.value[0], True)
    assert words in message
    watched.status = Status()
    over = Notice(trouble.value[1], f"over: {message}", is_warning=False)
    assert watched.look(SETTLE + 2, SETTLE + 3, SETTLE + 3 * REPEAT) == [over]
    change(watched.status)
    later = 4 * REPEAT
    assert len(watched.look(later, later + SETTLE)) == 1  # as the first time


def test_a_node_in_order_has_nothing_to_tell(watched: Watched) -> None:
    watched.status.mtu = watched.status.pod_mtu = 1450
    watched.status.store_trouble = "the API server is away: whom to tell?"
    assert troubles(watched.status) == {}


def test_reasons_are_single_words_that_differ() -> None:
    reasons = [reason for trouble in Trouble for reason in trouble.value]
    assert len(set(reasons)) == len(reasons) == 2 * len(Trouble)
    assert all(reason.isalnum() and reason[0].isupper() for reason in reasons)


def test_what_is_over_before_it_settles_is_never_told(watched: Watched) -> None:
    watched.status.kernel_trouble = "device gone"
    assert watched.look(0.0, 1.0) == []
    watched.status.kernel_trouble = ""
    assert watched.look(2.0, 100.0) == []
    watched.status.kernel_trouble = "device gone"
    assert watched.look(200.0, 200.0 + SETTLE - 0.1) == []  # it settles anew
    assert len(watched.look(200.0 + SETTLE)) == 1


def test_other_words_are_told_after_a_while_and_only_the_last(watched: Watched) -> None:
    watched.status.lease_trouble = "one"
    assert len(watched.look(0.0, SETTLE)) == 1
    watched.status.lease_trouble = "two"
    assert watched.look(10.0) == []
    watched.status.lease_trouble = "three"
    assert watched.look(11.0, 10.0 + QUIET - 0.1) == []
    assert [notice.message for notice in watched.look(10.0 + QUIET, 11.0 + QUIET)] == ["three"]


def test_what_lasts_is_told_again_before_a_cluster_forgets_it(watched: Watched) -> None:
    watched.status.lease_trouble = "lasting"
    hours = 10 * 3600
    told = watched.look(*map(float, range(hours)))
    assert {notice.message for notice in told} == {"lasting"}
    assert hours / REPEAT <= len(told) <= 2 * hours / REPEAT


def test_many_nodes_do_not_tell_the_same_at_the_same_moment() -> None:
    count, moments = 1000, []
    for seed in range(count):
        node = Watched(seed=seed)
        node.status.peers_desired = count
        node.status.refused = {REFUSED: "bad"}
        moments.append(next(now for now in range(60) if node.look(float(now))))
    assert min(moments) >= SETTLE
    busiest = max(moments.count(moment) for moment in moments)
    assert busiest < 1.5 * CLUSTER_RATE
    assert max(moments) <= SETTLE + count / CLUSTER_RATE + 1


def test_ends_are_spread_as_well() -> None:
    node = Watched(seed=3)
    node.status.peers_desired = 1000
    node.status.refused = {REFUSED: "bad"}
    assert len(node.look(*map(float, range(20)))) == 1
    node.status.refused = {}
    assert node.look(20.0) == []
    assert [notice.reason for notice in node.look(*map(float, range(21, 40)))] == [
        "PeersProgrammed"
    ]


def test_long_lists_are_cut_with_their_number(watched: Watched) -> None:
    watched.status.skipped = {f"n{number}": "bad" for number in range(5)}
    assert troubles(watched.status)[Trouble.NODES] == "n0: bad; n1: bad; n2: bad; and 2 more"
