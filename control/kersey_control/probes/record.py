"""What is known of one peer: what it was asked and answered, and what each side received. Pure.

A peer is asked in rounds. A round is answered by whatever comes back of it within `TIMEOUT`; the
next one begins later. Only questions to the peer's own address are numbered: those to its node, in
plain, which a peer that is silent gets besides, must not hide what the tunnel loses.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address

from kersey_control.allowance import Allowance
from kersey_control.peer import Peer
from kersey_control.probes.losses import NOTHING, WINDOW, Came, Loss, loss
from kersey_control.probes.message import Message
from kersey_control.reach import Answering, Means, OneWay, Reach

TIMEOUT = 1.0
"""Seconds after which a question counts as lost."""

SILENT_AFTER = 4
"""Rounds in a row without an answer that make a peer silent; those after the first come soon."""

_SELDOM = 4
"""Every so many rounds, a peer that never answers our datagrams gets one."""

_SMOOTHING = 1 / 8  # of the round trip, as TCP's (RFC 6298)
_STALE_PERIODS = 3
_ROUNDS = (1 << WINDOW) - 1


@dataclass(slots=True)
class Record:
    """One peer, at the address where it is asked. Times are monotonic seconds."""

    peer: Peer
    address: IPv4Address
    answers: Allowance
    """How often its questions are answered."""
    rounds: int = 0
    pending: bool = False
    asked_at: float = 0.0
    next_at: float = 0.0
    """When the next round begins if this one is answered."""
    misses: int = 0
    """Rounds in a row without an answer."""
    means: Means = Means.PROBE
    _answered: int = 0
    """A bit for each of the last rounds, bit 0 the newest."""
    _round_trip: float | None = None
    _answered_at: float | None = None
    _unheard: int = 1
    """Datagrams in a row that the peer did not answer, and one before the first."""
    asked: int = 0
    """The number of our last question."""
    token: int = 0
    """The peer's, 0 before anything was heard of it."""
    came: Came = field(default_factory=Came)
    _theirs: int = 0
    _theirs_since: int = 0
    _ours_since: int = 0
    _out: Loss = NOTHING
    _heard_at: float = 0.0

    def settle(self, now: float) -> None:
        """Close the round if its time is over."""
        if self.pending and now >= self.asked_at + TIMEOUT:
            self.pending = False
            self.misses += 1

    @property
    def wants_haste(self) -> bool:
        """Return whether the last round failed, and too few did to call the peer silent."""
        return 0 < self.misses < SILENT_AFTER

    @property
    def is_silent(self) -> bool:
        """Return whether the last rounds all failed."""
        return self.misses >= SILENT_AFTER

    def ask(self, now: float, *, period: float) -> frozenset[Means]:
        """Begin a round; return what to ask by. A datagram has the number `asked`."""
        self.rounds += 1
        self._answered = self._answered << 1 & _ROUNDS
        self.pending, self.asked_at = True, now
        means = set()
        speaks = self._unheard < _SELDOM or self._is_heard(now, period)
        if self._unheard:
            means.add(Means.ECHO)
        if speaks or self.rounds % _SELDOM == 0:
            means.add(Means.PROBE)
            self.asked += 1
            self._unheard += 1
        return frozenset(means)

    def hear(self, message: Message, *, ours: int, is_plain: bool, now: float) -> None:
        """Take a message of this peer in. `ours` is our token; a plain one went past the tunnel."""
        is_question = not message.answers
        if message.token != self.token:
            self._meet(message, is_new=is_question and not is_plain)
        self._theirs = max(self._theirs, message.asked)
        if is_question and not is_plain:
            self.came.note(message.asked)
        knows_us = message.heard_token == ours
        self._out = loss(
            newest=message.newest if knows_us else self._ours_since,
            bits=message.came if knows_us else 0,
            sent=self.asked,
            since=self._ours_since,
        )
        self._heard_at = now
        if knows_us and message.answers == self.asked and not is_question and not is_plain:
            self._unheard = 0
            self._answer(Means.PROBE, now)

    def echoed(self, number: int, now: float) -> None:
        """Take the reply to the echo request of a round in."""
        if number == self.rounds & 0xFFFF:
            self._answer(Means.ECHO, now)

    def reach(self, now: float, *, period: float) -> Reach:
        """Return what all this comes to."""
        judged = min(self.rounds, WINDOW) - self.pending
        answered = self._answered.bit_count()
        is_heard = self._is_heard(now, period)
        came = self._in() if is_heard else NOTHING
        out = self._out if is_heard else NOTHING
        by_echo = self.means is Means.ECHO and not self.is_silent
        return Reach(
            answering=self._answering,
            round_trip=self._round_trip,
            loss=1 - answered / judged if judged else None,
            loss_out=None if by_echo else out.ratio,
            loss_in=None if by_echo else came.ratio,
            one_way=_one_way(out, came) if self.is_silent else None,
            answered_at=self._answered_at,
            asked=self.address,
            means=self.means,
        )

    @property
    def _answering(self) -> Answering:
        if self.is_silent:
            return Answering.SILENT
        return Answering.UNKNOWN if self._answered_at is None else Answering.ANSWERS

    def _in(self) -> Loss:
        return loss(
            newest=self.came.newest,
            bits=self.came.bits,
            sent=self._theirs,
            since=self._theirs_since,
        )

    def _is_heard(self, now: float, period: float) -> bool:
        return bool(self.token) and now - self._heard_at < _STALE_PERIODS * (period + TIMEOUT)

    def _meet(self, message: Message, *, is_new: bool) -> None:
        """Count anew: the peer's daemon is another one than before."""
        self.token = message.token
        self.came = Came(newest=message.asked - is_new)
        self._theirs_since = self.came.newest
        self._theirs = message.asked
        self._ours_since = self.asked

    def _answer(self, means: Means, now: float) -> None:
        if not self.pending:
            return
        took = now - self.asked_at
        before = self._round_trip
        self._round_trip = took if before is None else before + _SMOOTHING * (took - before)
        self._answered |= 1
        self._answered_at = now
        self.means = means
        self.pending, self.misses = False, 0


def _one_way(out: Loss, came: Loss) -> OneWay | None:
    if out.is_cut and came.judged and not came.is_cut:
        return OneWay.OUT
    if came.is_cut and out.judged and not out.is_cut:
        return OneWay.IN
    return None
