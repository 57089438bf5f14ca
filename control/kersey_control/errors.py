"""Every exception of the control plane, by what the caller can do about it.

Nothing here is raised for one bad record among many: those become values (`Skipped`, `Failure`)
so that one of them can never harm another.
"""

from collections.abc import Iterable


class KerseyError(Exception):
    """Be the base of all errors that Kersey raises on purpose."""


class InvalidInputError(KerseyError):
    """Refuse one input: name the field, the value and the rule it broke. The caller asks again."""

    def __init__(self, *, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}: got {value!r}, expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class StoreError(KerseyError):
    """Be the base of what a lease store can answer besides a result."""


class StoreUnavailableError(StoreError):
    """Report that the store gave no answer (down, timeout, no leader). Retry later."""


class StoreAuthError(StoreError):
    """Report that the store refused our credentials. Retry with a new session, at a slow rate."""


class StoreConflictError(StoreError):
    """Report a lost compare-and-swap: the record changed since it was read. Read again."""


class StoreRefusedError(StoreError):
    """Report that the store understood and refused for good (too large, malformed)."""


class SubnetsExhaustedError(KerseyError):
    """Report that no free subnet is left between SubnetMin and SubnetMax."""


class DuplicateNodeError(KerseyError):
    """Report that another node holds a lease for our public address. An operator must act."""


class AlreadyRunningError(KerseyError):
    """Report that a running kerseyd uses what we were told to use."""


class UnavailableError(KerseyError):
    """Report that there is no fast path on this node, with every reason."""


class NotWantedError(UnavailableError):
    """Report that there is no fast path because nobody wants one: by option, or by backend."""


class PeerRefusedError(KerseyError):
    """Report that one peer's lease cannot be turned into kernel state; others are untouched."""


class UplinkError(KerseyError):
    """Report that no interface fits what was asked; lists what was considered."""

    def __init__(self, message: str, candidates: Iterable[str] = ()) -> None:
        listed = "; ".join(candidates)
        super().__init__(f"{message} (considered: {listed})" if listed else message)


class KernelError(KerseyError):
    """Report a kernel request that failed: what was asked, and the errno's name."""
