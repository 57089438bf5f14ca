"""Which part of the packets between nodes took the fast path. Pure."""

from collections.abc import Mapping

from kersey_loader.layout import Verdict

from kersey_control.verdicts import FORGED, name_of

Verdicts = Mapping[str, Mapping[str, int]]
"""Packets by program and verdict, as `kersey status --json` has them."""

_NEITHER = frozenset(map(name_of, FORGED | {Verdict.UNRELATED, Verdict.FAST}))


def fast_and_slow(verdicts: Verdicts) -> tuple[int, int]:
    """Return how many packets between nodes took the fast path and the stack, both directions.

    Without forged ones: most are dropped, and how many there are is up to whoever sends them.
    """
    fast = sum(
        verdicts.get(program, {}).get("fast", 0) for program in ("from_pod", "from_uplink", "wire")
    )
    slow = sum(
        count
        # A tunnel's own device, and the uplink where the way is direct.
        for program in ("to_overlay", "to_uplink", "from_uplink")
        for verdict, count in verdicts.get(program, {}).items()
        if verdict not in _NEITHER
    )
    return fast, slow


def share_text(fast: int, slow: int) -> str:
    """Return the fast path's part in words."""
    total = fast + slow
    return f"{100 * fast / total:.1f} % of {total:,} packets" if total else "no packets yet"
