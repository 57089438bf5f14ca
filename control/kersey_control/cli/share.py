"""Which part of the packets between nodes took the fast path. Pure; the standard library alone."""

from collections.abc import Mapping

Verdicts = Mapping[str, Mapping[str, int]]
"""Packets by program and verdict, as `kersey status --json` has them."""


def fast_and_slow(verdicts: Verdicts) -> tuple[int, int]:
    """Return how many packets between nodes took the fast path and the stack, both directions."""
    fast = sum(
        verdicts.get(program, {}).get("fast", 0) for program in ("from_pod", "from_uplink", "wire")
    )
    slow = sum(
        count
        # A tunnel's own device, and the uplink where the way is direct.
        for program in ("to_overlay", "to_uplink", "from_uplink")
        for verdict, count in verdicts.get(program, {}).items()
        if verdict not in {"unrelated", "fast"}
    )
    return fast, slow


def share_text(fast: int, slow: int) -> str:
    """Return the fast path's part in words."""
    total = fast + slow
    return f"{100 * fast / total:.1f} % of {total:,} packets" if total else "no packets yet"
