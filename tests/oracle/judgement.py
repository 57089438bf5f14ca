"""What is compared after random packets, and how many of them must have been fast.

Equal results of two slow paths would prove nothing, so the counters are asked every time.
"""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kersey_loader.layout import Program
from packets import TCP

from oracle.pair import Pair
from oracle.rules import RuleSet
from oracle.shots import CLIENT, End, Lane, Shot, shots

BATCHES = 30
_SEGMENT = 700  # so that several are longer than the overlay takes
PLAIN = [
    shot
    for end in End
    for shot in (
        Shot(sender=end, protocol=TCP),
        Shot(sender=end),
        Shot(sender=end, segment=_SEGMENT, size=3 * _SEGMENT + 1),
    )
] * 2
"""What has to be fast in any flow that may be."""


def agree(pair: Pair) -> None:
    """Fail with each packet that fared differently."""
    differences = pair.differences()
    assert not differences, "\n".join(differences)


class FastCount:
    """How many packets were fast since it was made, by node and program."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._before = self._now()

    def _now(self) -> dict[tuple[End, Program], int]:
        return {(end, key): n for end in End for key, n in self._pair.fast.fast(end).items()}

    def __call__(self) -> dict[tuple[End, Program], int]:
        """Return the counts."""
        return {key: count - self._before[key] for key, count in self._now().items()}


def expected(
    pair: Pair, rules: RuleSet, lane: Lane, batch: list[Shot], *, node: End, program: Program
) -> range:
    """Return the counts that are right: none where a rule rewrites, or a service translates."""
    if not rules.fast or (lane is not Lane.DIRECT and node is CLIENT):
        return range(1)
    least = len(PLAIN) // len(End)
    if program is Program.FROM_POD:
        sent = (shot for shot in batch if shot.sender is node)
        most = sum(shot.may_leave_fast(direct=pair.direct) for shot in sent)
    else:  # datagrams in one frame are for the stack, unless a device between takes them apart
        least -= sum(bool(shot.segment) for shot in PLAIN) // len(End)
        came = (shot for shot in batch if shot.sender is not node)
        most = sum(shot.datagrams * shot.may_arrive_fast(direct=pair.direct) for shot in came)
    return range(least, most + 1)


def received(pair: Pair) -> list[int]:
    """Return how many packets came of shots since the last comparison, in each testbed."""
    return [sum(map(len, side.arrivals().values())) for side in pair.sides]


def compare_random(pair: Pair, rules: RuleSet, lane: Lane) -> None:
    """Send random packets under `rules`, and fail for the first batch that fared differently."""

    @settings(
        max_examples=BATCHES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a difference names its packet: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(shots(), min_size=20, max_size=40))
    def check(drawn: list[Shot]) -> None:
        # First: a packet from a foreign port has the flow's next one judged by the stack.
        batch = [rules.comparable(each, lane, direct=pair.direct) for each in (*PLAIN, *drawn)]
        flows = pair.flows(lane)
        pair.prime(*dict.fromkeys(flows.of(each) for each in batch if each.primed))
        fast = FastCount(pair)
        pair.fire(*((shot, flows.of(shot)) for shot in batch))
        agree(pair)
        for (node, program), number in fast().items():
            right = expected(pair, rules, lane, batch, node=node, program=program)
            assert number in right, f"{program.name} of {node.name}: {number} fast, not in {right}"

    check()
