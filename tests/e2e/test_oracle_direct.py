"""The differential oracle with direct admission: TCP between pods is fast from its SYN on.

Equality is promised where the nodes do nothing to TCP between pods: no policy, no rewriting, no
policy routing. There are two known differences, and each has a test of its own that states it.
"""

import shutil
from collections.abc import Iterator

import pytest
from kersey_loader.layout import Program
from oracle import CLIENT, RULE_SETS, SERVER, End, Flow, Lane, Pair, RuleSet, Shot, side_by_side
from oracle.judgement import FastCount, agree, compare_random, received
from oracle.rules import ANY_OTHER, DSCP, DSCP_MANGLE, INVALID_DROP, NO_RULES
from packets import ACK, FIN, PSH, RST, SYN, TCP

CASES = [
    pytest.param(rules, lane, id=f"{rules}-{lane.name.lower()}")
    for rules in RULE_SETS
    for lane in rules.lanes
]
LIFE = [
    Shot(sender=CLIENT, protocol=TCP, flags=SYN, size=0),
    Shot(sender=SERVER, protocol=TCP, flags=SYN | ACK, size=0),
    Shot(sender=CLIENT, protocol=TCP, size=0),
    Shot(sender=CLIENT, protocol=TCP, flags=ACK | PSH),
    Shot(sender=SERVER, protocol=TCP, flags=ACK | PSH),
]
"""A connection from its begin on, all but its end."""

ENDS = {
    "fin": [
        Shot(sender=SERVER, protocol=TCP, flags=FIN | ACK, size=0),
        Shot(sender=CLIENT, protocol=TCP, size=0),
        Shot(sender=CLIENT, protocol=TCP, flags=FIN | ACK, size=0),
        Shot(sender=SERVER, protocol=TCP, size=0),
    ],
    "reset": [Shot(sender=SERVER, protocol=TCP, flags=RST, size=0)],
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Give the module's tests both testbeds, and the fast one has learned where its pods are."""
    for program in ("ip", "etcd", "etcdctl", "nft"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    with side_by_side(direct=True) as both:
        both.wait_fast()
        agree(both)
        yield both


@pytest.mark.parametrize(("rules", "lane"), CASES)
def test_random_packets_fare_the_same_with_direct_admission(
    pair: Pair, rules: RuleSet, lane: Lane
) -> None:
    with pair.under(rules):
        if rules.fast:
            pair.wait_fast()
        compare_random(pair, rules, lane)


def live(pair: Pair, flow: Flow, shots: list[Shot]) -> None:
    """Send shots one after the other, each when the one before it has arrived."""
    for shot in shots:
        pair.fire((shot, flow))


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("rules", [NO_RULES, INVALID_DROP], ids=str)
def test_a_connection_is_fast_from_its_first_packet_to_its_last(
    pair: Pair, rules: RuleSet, end: list[Shot]
) -> None:
    with pair.under(rules):
        fast = FastCount(pair)
        live(pair, pair.flow(TCP), [*LIFE, *end])
        agree(pair)
        sent = {each: sum(shot.sender is each for shot in (*LIFE, *end)) for each in End}
        assert fast() == {
            (CLIENT, Program.FROM_POD): sent[CLIENT],
            (SERVER, Program.FROM_UPLINK): sent[CLIENT],
            (SERVER, Program.FROM_POD): sent[SERVER],
            (CLIENT, Program.FROM_UPLINK): sent[SERVER],
        }


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("rules", [NO_RULES, INVALID_DROP], ids=str)
def test_a_connection_that_was_idle_over_a_flush_ends_as_any(
    pair: Pair, rules: RuleSet, end: list[Shot]
) -> None:
    with pair.under(rules):
        flow = pair.flow(TCP)
        live(pair, flow, LIFE)
        with pair.under(ANY_OTHER):
            live(pair, flow, end)
            agree(pair)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_connection_that_the_stack_carried_after_a_flush_ends_as_any(
    pair: Pair, end: list[Shot]
) -> None:
    with pair.under(INVALID_DROP):
        flow = pair.flow(TCP)
        live(pair, flow, LIFE)
        with pair.under(ANY_OTHER):
            fast = FastCount(pair)
            live(pair, flow, [*LIFE[3:], *end])
            agree(pair)
            assert sum(fast().values()) < 2 * len(LIFE[3:] + end)


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | RST, FIN, FIN | RST | ACK, SYN | ACK | RST])
def test_flags_that_no_connection_has_are_left_to_the_stack(pair: Pair, flags: int) -> None:
    with pair.under(INVALID_DROP):
        flow = pair.flow(TCP)
        live(pair, flow, LIFE)
        agree(pair)
        fast = FastCount(pair)
        pair.fire(*((Shot(sender=end, protocol=TCP, flags=flags), flow) for end in End))
        agree(pair)
        assert not any(fast().values())
        live(pair, flow, ENDS["fin"])
        agree(pair)


def test_a_rule_that_rewrites_packets_does_not_see_those_of_a_direct_connection(
    pair: Pair,
) -> None:
    """State the inequivalence: no witness is asked for, so no rule is noticed."""
    with pair.under(DSCP_MANGLE):
        flow = pair.flow(TCP)
        pair.fire((LIFE[0], flow))
        (difference,) = pair.differences()
        plain, fast = (line.split(": ")[-1] for line in difference.splitlines()[1:])
        assert [tos_of(line) for line in (plain, fast)] == [DSCP << 2, 0]


def tos_of(shown: str) -> int:
    return bytes.fromhex(shown.rsplit(maxsplit=1)[-1])[1]


def test_an_error_about_a_direct_connection_is_invalid_to_the_sender_s_node(pair: Pair) -> None:
    """State the inequivalence: conntrack knows no connection that the error could belong to."""
    with pair.under(INVALID_DROP):
        flow = pair.flow(TCP)
        live(pair, flow, LIFE)
        agree(pair)
        pair.fire((Shot(protocol=TCP, ttl=2), flow))
        assert received(pair) == [1, 0]
        pair.differences()
