"""Probes between nodes whose network is lossy, cut, or half there: what each comes to know."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kersey_control.allowance import Allowance
from kersey_control.echo import Reply
from kersey_control.peer import Via
from kersey_control.probes.book import Book, Outgoing, Refusal
from kersey_control.probes.message import SIZE, Message, decode, encode
from kersey_control.probes.record import Record
from kersey_control.reach import Answering, Means, OneWay
from probe_net import Net, new_book, node_of, peer_of, subnet_of

ANSWERS, SILENT, UNKNOWN = Answering.ANSWERS, Answering.SILENT, Answering.UNKNOWN


def pair(*, settled: float = 60.0) -> Net:
    """Return two nodes that have known each other for some seconds."""
    net = Net({1: new_book(1), 2: new_book(2)})
    net.meet()
    net.run(settled)
    return net


def test_peers_that_hear_each_other_answer_without_loss() -> None:
    net = pair()
    for number, other in ((1, 2), (2, 1)):
        reach = net.reach(number, other)
        assert (reach.answering, reach.means, reach.one_way) == (ANSWERS, Means.PROBE, None)
        assert (reach.loss, reach.loss_out, reach.loss_in) == (0, 0, 0)
        assert reach.round_trip == pytest.approx(0.002)
        assert reach.asked == subnet_of(other)[0]
        assert net.now - (reach.answered_at or 0) < 7


def test_nothing_is_said_of_a_peer_before_it_was_asked() -> None:
    net = Net({1: new_book(1), 2: new_book(2)}, down={2})
    net.meet()
    assert net.reach(1, 2) == replace(net.reach(1, 2), answering=UNKNOWN, loss=None)
    net.run(5)
    assert net.reach(1, 2).answering is UNKNOWN


def test_a_peer_that_falls_silent_is_known_within_two_questions_time() -> None:
    net = pair()
    net.down = {2}
    net.run(6 + 4 * 1.3)
    reach = net.reach(1, 2)
    assert (reach.answering, reach.one_way) == (SILENT, None)
    net.run(60)
    assert (net.reach(1, 2).loss_out, net.reach(1, 2).loss_in) == (None, None)
    net.down = set()
    net.run(8)
    assert net.reach(1, 2).answering is ANSWERS


@pytest.mark.parametrize("settled", [0.0, 60.0], ids=["from the start", "later"])
@pytest.mark.parametrize("lost", [(1, 2), (2, 1)], ids=["out", "in"])
def test_one_way_loss_is_named_at_both_ends(lost: tuple[int, int], settled: float) -> None:
    net = pair(settled=settled)
    net.tunnel = lambda link: link != lost
    net.run(45)
    sender, receiver = lost
    there, here = net.reach(sender, receiver), net.reach(receiver, sender)
    assert (there.answering, there.one_way) == (SILENT, OneWay.OUT)
    assert (here.answering, here.one_way) == (SILENT, OneWay.IN)
    net.run(200)
    assert (net.reach(sender, receiver).loss_out, net.reach(sender, receiver).loss_in) == (1, 0)
    assert (net.reach(receiver, sender).loss_out, net.reach(receiver, sender).loss_in) == (0, 1)
    net.tunnel = lambda _link: True
    net.run(8)
    assert net.reach(sender, receiver).answering is net.reach(receiver, sender).answering is ANSWERS


def test_where_nodes_are_cut_past_the_tunnel_too_one_end_knows_the_direction() -> None:
    net = pair()
    net.tunnel = net.plain = lambda link: link != (1, 2)
    net.run(45)
    assert net.reach(1, 2).one_way is OneWay.OUT
    assert (net.reach(2, 1).answering, net.reach(2, 1).one_way) == (SILENT, None)


def test_a_tunnel_that_carries_nothing_is_no_one_way_loss() -> None:
    net = pair()
    net.tunnel = lambda _link: False
    net.run(200)
    for number, other in ((1, 2), (2, 1)):
        reach = net.reach(number, other)
        assert (reach.answering, reach.one_way) == (SILENT, None)
        assert (reach.loss_out, reach.loss_in) == (1, 1)


def test_a_share_of_lost_packets_is_told_by_direction() -> None:
    net = pair()
    rng = random.Random(3)
    net.tunnel = lambda link: link != (1, 2) or rng.random() > 0.25
    net.run(400)
    for reach, mine, other in (
        (net.reach(1, 2), "loss_out", "loss_in"),
        (net.reach(2, 1), "loss_in", "loss_out"),
    ):
        assert 0.05 < getattr(reach, mine) < 0.5
        assert getattr(reach, other) == 0
        assert reach.answering is ANSWERS


def test_a_node_without_a_daemon_answers_by_its_kernel() -> None:
    net = Net({1: new_book(1)}, nodes={2})
    net.meet()
    net.run(60)
    reach = net.reach(1, 2)
    assert (reach.answering, reach.means, reach.loss) == (ANSWERS, Means.ECHO, 0)
    assert (reach.loss_out, reach.loss_in) == (None, None)
    net.carried.clear()
    net.run(400)
    assert net.carried[1, 2] <= 1.3 * 400 / 5 * 1.3  # the daemon is looked for now and then


def test_a_daemon_that_ends_is_no_loss_and_its_return_is_noticed() -> None:
    net = pair()
    book = net.books.pop(2)
    net.run(13)
    assert (net.reach(1, 2).means, net.reach(1, 2).loss_out) == (Means.ECHO, None)
    net.run(157)
    reach = net.reach(1, 2)
    assert (reach.answering, reach.means) == (ANSWERS, Means.ECHO)
    assert (reach.loss or 0) <= 1 / 31
    assert (reach.loss_out, reach.loss_in) == (None, None)
    net.books[2] = book
    net.run(30)
    assert net.reach(1, 2).means is Means.PROBE


def test_a_restart_of_the_other_daemon_counts_anew() -> None:
    net = pair()
    net.books[2] = new_book(2)
    net.meet()
    net.run(30)
    for number, other in ((1, 2), (2, 1)):
        reach = net.reach(number, other)
        assert (reach.answering, reach.loss_out, reach.loss_in) == (ANSWERS, 0, 0)


def test_nodes_without_overlay_addresses_ask_each_other_in_plain() -> None:
    net = Net({number: new_book(number, has_overlay=False) for number in (1, 2)})
    net.meet()
    net.run(30)
    assert net.reach(1, 2).asked == node_of(2)
    assert (net.reach(1, 2).answering, net.reach(1, 2).loss_in) == (ANSWERS, 0)
    net.plain = lambda link: link != (1, 2)
    net.run(45)
    assert net.reach(1, 2).one_way is OneWay.OUT


def test_a_peer_at_another_node_is_another_peer() -> None:
    net = pair()
    book = net.books[1]
    book.follow([replace(peer_of(2), node=node_of(9))], net.now)
    assert net.reach(1, 2).answering is UNKNOWN
    book.follow([replace(peer_of(2), node=node_of(9))], net.now)
    book.follow([], net.now)
    assert book.reaches(net.now) == {}
    assert list(book.due(net.now + 100)) == []


QUESTION = Message(subnet_of(2), token=9, asked=1, heard_token=0, newest=0, came=0, answers=0)


def test_strangers_and_garbage_are_counted_and_get_nothing() -> None:
    net = pair(settled=0)
    book, known = net.books[1], net.reach(1, 2)
    for data, sender in (
        (encode(QUESTION), node_of(3)),
        (encode(QUESTION), subnet_of(3)[0]),
        (encode(QUESTION), subnet_of(2)[1]),  # a pod of that peer
        (encode(replace(QUESTION, subnet=subnet_of(9))), node_of(9)),
        (b"", node_of(2)),
        (encode(QUESTION) + b"x", node_of(2)),
    ):
        assert book.receive(data, sender, net.now) is None
    assert book.refused == {Refusal.UNKNOWN_SENDER: 4, Refusal.MALFORMED: 2}
    assert net.reach(1, 2) == known
    assert len(book.reaches(net.now)) == 1


def test_an_answer_is_no_longer_than_its_question_and_there_are_only_so_many() -> None:
    book = pair(settled=0).books[1]
    answers = [book.receive(encode(QUESTION), subnet_of(2)[0], 2000.0) for _ in range(100)]
    given_ = [answer for answer in answers if answer is not None]
    assert len(given_) == 8
    assert {(len(answer.data), answer.to, answer.is_plain) for answer in given_} == {
        (SIZE, subnet_of(2)[0], False)
    }
    assert book.refused[Refusal.TOO_MANY] == 92


@dataclass
class Round:
    """The first round of a book's only peer, asked at `now`."""

    book: Book
    now: float
    probe: Outgoing
    ping: Outgoing

    @classmethod
    def begun(cls) -> Self:
        book, now = new_book(1), 105.0
        book.follow([peer_of(2)], 100.0)
        probe, ping = book.due(now)
        return cls(book, now, probe, ping)

    @property
    def answer(self) -> Message:
        question = decode(self.probe.data)
        assert question is not None
        return replace(QUESTION, answers=question.asked, heard_token=question.token, newest=1)

    def take(self, message: Message, *, after: float = 0.5) -> None:
        self.book.receive(encode(message), subnet_of(2)[0], self.now + after)

    def echo(self, number: int, *, sender: IPv4Address | None = None) -> None:
        reply = Reply(sender or self.ping.to, 1, number, self.ping.data)
        self.book.echoed(reply, self.now + 0.5)

    @property
    def answering(self) -> Answering:
        return self.book.reaches(self.now + 1)[subnet_of(2)].answering


def test_an_answer_by_somebody_who_did_not_get_the_question_counts_for_nothing() -> None:
    begun = Round.begun()
    begun.take(replace(begun.answer, heard_token=5))
    begun.take(replace(begun.answer, heard_token=0))
    begun.take(replace(begun.answer, answers=2))
    begun.book.receive(encode(begun.answer), node_of(2), begun.now)  # past the tunnel
    begun.echo((begun.ping.echo or 0) + 1)
    garbled = b"x" + begun.ping.data[1:]
    begun.book.echoed(Reply(begun.ping.to, 1, begun.ping.echo or 0, garbled), begun.now)
    assert begun.answering is UNKNOWN
    begun.take(begun.answer)
    assert begun.answering is ANSWERS


def test_a_ping_that_comes_back_is_an_answer() -> None:
    begun = Round.begun()
    begun.echo(begun.ping.echo or 0)
    assert begun.answering is ANSWERS


@pytest.mark.parametrize(
    "sender",
    [subnet_of(3)[0], node_of(3), node_of(2), subnet_of(2)[1]],
    ids=["another peer", "its node", "past the tunnel", "a pod of the peer"],
)
def test_nobody_answers_a_ping_for_another(sender: IPv4Address) -> None:
    begun = Round.begun()
    begun.book.follow([peer_of(2), peer_of(3)], begun.now)
    begun.echo(begun.ping.echo or 0, sender=sender)
    assert begun.answering is UNKNOWN
    assert begun.book.refused == {Refusal.UNKNOWN_SENDER: 1}


def test_an_answer_that_comes_too_late_is_none() -> None:
    record = Record(peer_of(2), subnet_of(2)[0], Allowance(1.0, 1.0))
    record.ask(0.0, period=5.0)
    record.settle(0.9)
    assert record.pending
    record.settle(1.0)
    record.echoed(1, 1.1)
    assert (record.pending, record.misses) == (False, 1)


def test_a_question_on_its_way_is_no_loss() -> None:
    begun = Round.begun()
    assert begun.book.reaches(begun.now)[subnet_of(2)].loss is None
    begun.take(begun.answer)
    now = begun.now + 7.0
    assert list(begun.book.due(now))
    assert begun.book.reaches(now)[subnet_of(2)].loss == 0


@settings(max_examples=20, deadline=None)
@given(
    peers=st.integers(1, 200),
    rate=st.integers(1, 30),
    interval=st.integers(1, 10),
    silent=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_the_budget_holds_and_every_peer_has_its_turn(
    peers: int, rate: int, interval: int, silent: float
) -> None:
    book = new_book(0, interval=interval, rate=rate)
    rng, asked, sent, now, last = random.Random(peers), Counter[str](), 0, 0.0, 0.0
    dead = {n for n in range(1, peers + 1) if rng.random() < silent}
    book.follow([peer_of(n) for n in range(1, peers + 1)], now)
    want = max(interval, 2 * peers / (rate * 0.9))
    while now < 3 * want:
        questions = list(book.due(now))
        sent += len(questions)
        assert sent <= rate * (now + 0.1) + 4
        for question in questions:
            asked[str(question.to)] += 1
            if question.echo is not None and question.to not in {subnet_of(n)[0] for n in dead}:
                book.echoed(Reply(question.to, 1, question.echo, question.data), now)
        last, now = now, now + max(0.02, min(1.0, book.wait(now)))
        assert now > last
    if silent == 0:
        assert len(asked) == peers
        # In the first rounds both means are tried, so that less than one in two is sure.
        assert min(asked.values()) >= 2
    assert book.sent == sent


def test_a_thousand_peers_are_asked_within_the_budget_and_a_silent_one_is_found() -> None:
    net = Net({0: new_book(0)}, nodes=set(range(1, 1001)))
    net.meet()
    net.run(160)
    assert Counter(reach.answering for reach in net.books[0].reaches(net.now).values()) == {
        ANSWERS: 1000
    }
    net.down = {77}
    net.run(140)
    assert net.reach(0, 77).answering is SILENT
    assert net.books[0].silent == {subnet_of(77)}
    assert math.ceil(net.books[0].sent / (net.now - 1000.0)) <= 20


def test_direct_peers_are_asked_at_their_overlay_address_too() -> None:
    net = Net({1: new_book(1), 2: new_book(2)})
    net.meet()
    net.books[1].follow([peer_of(2, Via.DIRECT)], net.now)
    net.run(30)
    assert net.reach(1, 2).asked == subnet_of(2)[0]
    assert net.reach(1, 2).answering is ANSWERS
