"""The node's masquerade and forward rules: put in place, checked, repaired, taken out.

Rules stay in the kernel when the daemon ends: pods keep their way out while it restarts. It never
flushes before it fills, never overrides what others forbid (it reports them as hazards), and never
touches rules that are neither ours nor flannel's.
"""

import logging
from ipaddress import IPv4Network

from kersey_control.errors import KernelError
from kersey_control.rules.base import Engine, Hazard, Repair, RuleSet, desired_rules
from kersey_control.rules.iptables import Iptables, legacy_hazards, other_variants
from kersey_control.rules.nftables import Nftables, foreign_hazards
from kersey_control.rules.process import is_installed

logger = logging.getLogger(__name__)


class Rules:
    """Keep one rule set in one engine. Not thread-safe; calls block for some milliseconds."""

    def __init__(self, *, engine: Engine, desired: RuleSet) -> None:
        self._engine = engine
        self._desired = desired

    def ensure(self) -> Repair:
        """Compare the kernel with what is desired, repair it if needed, and return what differed.

        Raises KernelError if a program fails, or if the rules differ even after the repair.
        """
        repair = Repair(self._engine.differences(self._desired))
        if repair:
            self._engine.apply(self._desired)
            self._verify()
            logger.info(
                "packet filter rules put in place",
                extra={"engine": self._engine.name, "reasons": list(repair.reasons)},
            )
        return repair

    def hazards(self) -> tuple[Hazard, ...]:
        """Return what others put where it stops pods' forwarded packets; none if not our task."""
        if not self._desired.forward:
            return ()
        return self._engine.hazards() + foreign_hazards() + legacy_hazards()

    def remove(self) -> None:
        """Take out every rule, chain and table of ours from this engine, and nothing else."""
        self._engine.remove()

    def remove_other(self) -> None:
        """Take our and flannel's rules out of every engine besides this one.

        Call it after `ensure`, so that no packet meets a moment without rules. An engine that is
        not installed has nothing to remove.
        """
        chosen = self._engine if isinstance(self._engine, Iptables) else None
        for variant in other_variants(chosen):
            variant.remove()
        if chosen is not None and is_installed("nft"):
            _remove_tables()

    def _verify(self) -> None:
        if left := self._engine.differences(self._desired):
            raise KernelError(
                f"{self._engine.name}: rules differ after a repair: {'; '.join(left)}"
            )


def open_rules(
    *,
    nftables: bool,
    network: IPv4Network,
    subnet: IPv4Network,
    masquerade: bool,
    forward: bool,
    random_fully: bool,
) -> Rules:
    """Return the keeper of a node's rules; `random_fully` counts only where the engine knows it.

    Changes nothing yet. Raises KernelError, here or at `ensure`, naming the package if the engine
    is not installed.
    """
    engine: Engine = Nftables() if nftables else Iptables()
    desired = desired_rules(
        network=network,
        subnet=subnet,
        masquerade=masquerade,
        forward=forward,
        random_fully=engine.supports_random_fully() and random_fully,
    )
    return Rules(engine=engine, desired=desired)


def remove_all_rules() -> None:
    """Take our and flannel's rules out of every engine that is installed. Raises KernelError."""
    for variant in other_variants(None):
        variant.remove()
    if is_installed("nft"):
        _remove_tables()


def _remove_tables() -> None:
    Nftables().remove()
    Nftables().remove_v6()
