"""Carry peers into the kernel, keep them there, and say for each peer whether it is.

Promises: no I/O before the first `set_peers`, so that a restart without a lease store leaves the
kernel forwarding as it was; a peer that is refused or fails never holds up another. It never
touches devices (the backend's) and never decides when to audit (the daemon's). Time is passed in,
in seconds of one monotonic clock. One thread at a time; `desired` may be read from any.
"""

import errno
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from kersey_control.errors import KernelError, PeerRefusedError
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import KernelObject, KernelState, Key, Plan, key_of, plan, state_of
from kersey_control.rtnetlink import Failure, Rtnl

logger = logging.getLogger(__name__)

_FIRST_RETRY = 0.5
_LAST_RETRY = 60.0
_HOST = 32


class Programmer(Protocol):
    """The part of a backend that forwarding needs: what a peer becomes, and what there is."""

    def common_objects(self) -> Iterable[KernelObject]:
        """Return what the kernel must hold for all peers together."""
        ...

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return what the kernel must hold for this peer. Raises PeerRefusedError."""
        ...

    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""
        ...


@dataclass(frozen=True, slots=True)
class Home:
    """Where we are: the pod network, our subnet, and every address that nodes know us by."""

    network: IPv4Network
    subnet: IPv4Network
    addresses: frozenset[IPv4Address]


class Condition(StrEnum):
    """What became of a peer."""

    PROGRAMMED = "programmed"
    FAILING = "failing"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer's condition, with the reason unless it is programmed."""

    peer: Peer
    condition: Condition
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit had to do, by kind of object (`Route`, `Neighbour`, ...), and what failed."""

    added: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    @property
    def repairs(self) -> int:
        """Return how many objects differed from what was wanted."""
        return sum(sum(kind.values()) for kind in (self.added, self.replaced, self.removed))


@dataclass(frozen=True, slots=True)
class _Retry:
    reason: str
    attempts: int
    due: float


class Forwarding:
    """Hold the peers that should be reachable and make the kernel agree, wholly or peer by peer."""

    def __init__(self, backend: Programmer, rtnl: Rtnl, home: Home) -> None:
        self._backend = backend
        self._rtnl = rtnl
        self._home = home
        self._started = False
        self._offered: dict[IPv4Network, Peer] = {}
        self._objects: dict[IPv4Network, tuple[KernelObject, ...]] = {}
        self._desired: KernelState = {}
        self._published: KernelState = self._desired
        self._shared: Counter[Key] = Counter()  # holders beyond the first
        self._common: frozenset[Key] = frozenset()
        self._refused: dict[IPv4Network, str] = {}
        self._failing: dict[IPv4Network, _Retry] = {}
        self._sweep: _Retry | None = None  # a removal failed: audit again
        self.refusals = 0
        """Requests that the kernel refused so far."""
        self._common_trouble = ""  # why something that all peers need is missing

    @property
    def desired(self) -> Mapping[Key, KernelObject]:
        """Return what the kernel should hold now; never half of a snapshot."""
        return self._published

    @property
    def next_retry(self) -> float | None:
        """Return when `retry_due` has something to do, None if nothing failed."""
        retries = [*self._failing.values(), *([self._sweep] if self._sweep else [])]
        return min((retry.due for retry in retries), default=None)

    def move(self, home: Home) -> None:
        """Take note that our subnet or addresses changed; the next `audit` judges peers by it."""
        self._home = home

    def check(self, peer: Peer) -> None:
        """Raise PeerRefusedError, with the reason, for what can be no peer of ours at all.

        Whoever carries packets besides the kernel must not hear of such a one either.
        """
        network, own = self._home.network, self._home.subnet
        base, length = int(peer.subnet.network_address), peer.subnet.prefixlen
        if length < network.prefixlen or base & int(network.netmask) != int(
            network.network_address
        ):
            raise PeerRefusedError(f"subnet: got {peer.subnet}, expected a part of {network}")
        if _overlap(base, length, own):
            raise PeerRefusedError(
                f"subnet: got {peer.subnet}, expected nothing in common with our own {own}"
            )
        if peer.node in self._home.addresses:
            raise PeerRefusedError(f"node: got our own address {peer.node}, expected another's")
        carried = peer.via is not Via.EXTERNAL  # on a network of pods and nodes all is possible
        if carried and any(_overlap(int(peer.node), _HOST, each) for each in (peer.subnet, own)):
            raise PeerRefusedError(f"node: got {peer.node}, a pod's address, expected a node's")

    def set_peers(self, peers: Iterable[Peer], now: float) -> AuditResult:
        """Make exactly these peers reachable, and remove what others left. Raises KernelError.

        `peers` are in the order in which they were claimed, the newest last.

        Where the kernel cannot be read the peers are remembered and the next `audit` does it.
        """
        self._started = True
        self._offered = {peer.subnet: peer for peer in peers}
        return self.audit(now)

    def put(self, peer: Peer, now: float) -> None:
        """Make one new or changed peer reachable; before the first `set_peers`, only note it.

        Raises KernelError only where it takes the place of an older claim that excludes it.
        """
        self._offered.pop(peer.subnet, None)  # the newest claim stands last
        self._offered[peer.subnet] = peer
        if self._started:
            self._update(peer.subnet, now)
            if peer.subnet in self._refused:
                self.audit(now)

    def remove(self, subnet: IPv4Network, now: float) -> None:
        """Take one peer away; before the first `set_peers`, only note it."""
        self._offered.pop(subnet, None)
        if self._started:
            self._update(subnet, now)

    def audit(self, now: float) -> AuditResult:
        """Compare the kernel with what is wanted and repair all of it. Raises KernelError.

        Derives every object anew, since a device made again has another ifindex. Before the first
        `set_peers` it does nothing.
        """
        if not self._started:
            return AuditResult()
        actual = self._backend.actual()
        self._admit_all()
        todo = plan(self._desired, actual)
        failures = self._rtnl.apply(todo)
        missing = (failure for failure in failures if key_of(failure.obj) in self._common)
        self._common_trouble = next(map(_reason, missing), "")
        self._settle(self._objects, failures, now)
        if not self._note_stuck(failures, now):
            self._sweep = None
        return _audit_result(todo, failures)

    def retry_due(self, now: float) -> None:
        """Try again what failed and whose time has come, against the kernel's actual state."""
        due = [subnet for subnet, retry in self._failing.items() if retry.due <= now]
        try:
            if self._sweep and self._sweep.due <= now:
                self.audit(now)
            elif due:
                self._converge(due, now)
        except KernelError as error:
            self._postpone(dict.fromkeys(due, str(error)), now)
            if self._sweep and self._sweep.due <= now:
                self._sweep = _next_retry(self._sweep, str(error), now)

    def statuses(self) -> Iterable[PeerStatus]:
        """Yield the status of every peer offered since the last `set_peers`."""
        for subnet, peer in self._offered.items():
            if subnet in self._refused:
                yield PeerStatus(peer, Condition.REFUSED, self._refused[subnet])
            elif subnet in self._failing:
                yield PeerStatus(peer, Condition.FAILING, self._failing[subnet].reason)
            elif self._common_trouble and not self._objects.get(subnet):
                yield PeerStatus(peer, Condition.FAILING, self._common_trouble)
            elif subnet in self._objects:
                yield PeerStatus(peer, Condition.PROGRAMMED)
            else:
                yield PeerStatus(peer, Condition.FAILING, "not tried yet")

    def _update(self, subnet: IPv4Network, now: float) -> None:
        """Bring one peer's objects up to date, and those that were refused because of it.

        The kernel is taken to hold what we put there; only if it turns out to hold something else
        is it read.
        """
        before = state_of(self._objects.get(subnet, ()))
        uncertain = subnet in self._failing
        self._withdraw(subnet)
        waiting = [other for other in self._refused if other != subnet]
        self._refused.pop(subnet, None)
        self._failing.pop(subnet, None)
        for each in (subnet, *waiting):
            self._admit(each)
        touched = [each for each in (subnet, *waiting) if each in self._objects]
        after = state_of(obj for each in touched for obj in self._objects[each])
        obsolete = {key: obj for key, obj in before.items() if key in after}
        obsolete |= {key: obj for key, obj in before.items() if key not in self._desired}
        failures = self._rtnl.apply(plan(after, obsolete))
        if uncertain or any(failure.errno == errno.EEXIST for failure in failures):
            failures = self._reconverge(touched, failures)
        self._settle(touched, failures, now)
        self._note_stuck(failures, now)

    def _reconverge(
        self, subnets: list[IPv4Network], failures: tuple[Failure, ...]
    ) -> tuple[Failure, ...]:
        """Try what failed once more, knowing what the kernel holds."""
        removals = tuple(f for f in failures if key_of(f.obj) not in self._desired)
        try:
            return removals + self._rtnl.apply(self._plan_for(subnets))
        except KernelError as error:
            logger.warning("kernel state unreadable", extra={"error": str(error)})
            return failures

    def _converge(self, subnets: list[IPv4Network], now: float) -> None:
        self._settle(subnets, self._rtnl.apply(self._plan_for(subnets)), now)

    def _plan_for(self, subnets: list[IPv4Network]) -> Plan:
        """Return what these peers lack, by the kernel's actual state; nothing is removed."""
        wanted = state_of(obj for subnet in subnets for obj in self._objects.get(subnet, ()))
        actual = self._backend.actual()
        return plan(wanted, {key: actual[key] for key in wanted if key in actual})

    def _admit_all(self) -> None:
        """Derive everything that is wanted from the offered peers.

        Of two that exclude each other the newest wins: a node that moved leaves its old lease
        behind until that expires, with the same MAC.
        """
        self._objects, self._shared = {}, Counter()
        self._desired = state_of(self._backend.common_objects())
        self._common = frozenset(self._desired)
        for subnet in reversed(self._offered):
            self._admit(subnet)
        self._published = self._desired
        self._refused = {s: reason for s, reason in self._refused.items() if s in self._offered}
        self._failing = {s: retry for s, retry in self._failing.items() if s in self._objects}

    def _admit(self, subnet: IPv4Network) -> None:
        """Hold a peer's objects as wanted, or note why it is refused."""
        peer = self._offered.get(subnet)
        if peer is None:
            self._refused.pop(subnet, None)
            return
        try:
            self.check(peer)
            objects = tuple(self._backend.objects(peer))
            keys = [key_of(obj) for obj in objects]
            self._check_conflicts(keys, objects)
        except PeerRefusedError as error:
            self._refuse(subnet, str(error))
            return
        self._refused.pop(subnet, None)
        self._objects[subnet] = objects
        for key, obj in zip(keys, objects, strict=True):
            if key in self._desired:
                self._shared[key] += 1
            self._desired[key] = obj

    def _withdraw(self, subnet: IPv4Network) -> None:
        for obj in self._objects.pop(subnet, ()):
            key = key_of(obj)
            if self._shared[key]:
                self._shared[key] -= 1
            else:
                del self._desired[key], self._shared[key]

    def _check_conflicts(self, keys: list[Key], objects: tuple[KernelObject, ...]) -> None:
        for key, obj in zip(keys, objects, strict=True):
            held = self._desired.get(key)
            if held is not None and held != obj:
                raise PeerRefusedError(
                    f"{type(obj).__name__}: got {_shown(obj)}, expected no conflict with"
                    f" {_shown(held)} of peer {self._holder(held)}"
                )

    def _holder(self, obj: KernelObject) -> IPv4Network | None:
        return next((s for s, objects in self._objects.items() if obj in objects), None)

    def _refuse(self, subnet: IPv4Network, reason: str) -> None:
        if self._refused.get(subnet) != reason:
            logger.warning("peer refused", extra={"subnet": str(subnet), "reason": reason})
        self._refused[subnet] = reason

    def _settle(
        self, attempted: Iterable[IPv4Network], failures: tuple[Failure, ...], now: float
    ) -> None:
        """Note for each peer that was tried whether it is programmed now, and when to retry."""
        self.refusals += len(failures)
        wrong = {key_of(failure.obj): failure for failure in failures}
        failed: dict[IPv4Network, str] = {}
        for subnet in attempted if wrong else ():
            first = next((f for o in self._objects[subnet] if (f := wrong.get(key_of(o)))), None)
            if first is not None:
                failed[subnet] = _reason(first)
        tried = attempted if self._failing else ()
        recovered = [s for s in tried if s in self._failing and s not in failed]
        for subnet in recovered:
            del self._failing[subnet]
        if recovered:
            extra = {"peers": len(recovered), "first": str(recovered[0])}
            logger.info("peers programmed after failures", extra=extra)
        self._postpone(failed, now)

    def _postpone(self, failed: Mapping[IPv4Network, str], now: float) -> None:
        """Note failures by subnet; many that begin together, as when a device goes, log once."""
        new = [subnet for subnet in failed if subnet not in self._failing]
        if new:
            extra = {"peers": len(new), "first": str(new[0]), "reason": failed[new[0]]}
            logger.warning("peers failing", extra=extra)
        for subnet, reason in failed.items():
            self._failing[subnet] = _next_retry(self._failing.get(subnet), reason, now)

    def _note_stuck(self, failures: tuple[Failure, ...], now: float) -> bool:
        """Note for a later audit whether something that is no peer's could not be put right."""
        stuck = [
            failure
            for failure in failures
            if (key := key_of(failure.obj)) not in self._desired or key in self._common
        ]
        if stuck:
            extra = {"objects": len(stuck), "reason": _reason(stuck[0])}
            logger.warning("kernel state stays as it should not be", extra=extra)
            self._sweep = _next_retry(self._sweep, _reason(stuck[0]), now)
        return bool(stuck)


def _overlap(base: int, length: int, subnet: IPv4Network) -> bool:
    shift = _HOST - min(length, subnet.prefixlen)
    return base >> shift == int(subnet.network_address) >> shift


def _next_retry(last: _Retry | None, reason: str, now: float) -> _Retry:
    attempts = last.attempts + 1 if last else 1
    delay = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(attempts - 1, 16))
    return _Retry(reason=reason, attempts=attempts, due=now + delay)


def _reason(failure: Failure) -> str:
    kind = type(failure.obj).__name__
    if failure.errno == errno.EEXIST:
        return f"{kind}: got EEXIST for {_shown(failure.obj)}, expected no foreign one in its place"
    return f"{kind}: got {failure.reason} for {_shown(failure.obj)}"


def _shown(obj: KernelObject) -> str:
    return ", ".join(f"{name}={value}" for name, value in obj._asdict().items())


def _audit_result(todo: Plan, failures: tuple[Failure, ...]) -> AuditResult:
    failed = {key_of(failure.obj) for failure in failures}
    put = Counter(type(obj).__name__ for obj in todo.put if key_of(obj) not in failed)
    replaced = Counter(
        str(getattr(key[0], "__name__", "")) for key in todo.replaced if key not in failed
    )
    return AuditResult(
        added=+(put - replaced),
        replaced=replaced,
        removed=Counter(type(obj).__name__ for obj in todo.remove if key_of(obj) not in failed),
        failures=failures,
    )
