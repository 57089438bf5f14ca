"""A watch on a thread of its own, as the daemon has it, and the state its events amount to."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from kersey_control.events import Changed, Removed, Snapshot, StoreEvent
from kersey_control.subnets.base import SubnetStore
from testbed.waiting import wait_until

if TYPE_CHECKING:
    from ipaddress import IPv4Network

    from kersey_control.lease import Lease

_T = TypeVar("_T", bound=StoreEvent)


class Following:
    """Collect the events of one store; `state` is what a consumer would believe."""

    def __init__(self, store: SubnetStore) -> None:
        self.events: list[StoreEvent] = []
        self.state: dict[IPv4Network, Lease] = {}
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._store = store
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        self.wait_for(lambda: bool(self.events))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join(5)
        assert self.error is None
        assert not self.thread.is_alive()

    def wait_for(self, holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
        wait_until(
            lambda: holds() or self.error, timeout=seconds, what=f"{holds} after {self.events[-5:]}"
        )
        assert self.error is None

    def wait_for_kind(self, kind: type[_T], *, seconds: float = 10.0) -> None:
        self.wait_for(lambda: bool(self.of(kind)), seconds=seconds)

    def of(self, kind: type[_T]) -> list[_T]:
        return [event for event in self.events if isinstance(event, kind)]

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def _run(self) -> None:
        try:
            for event in self._store.watch(self.stop):
                self._apply(event)
                self.events.append(event)
        except BaseException as error:
            self.error = error
            raise

    def _apply(self, event: StoreEvent) -> None:
        match event:
            case Snapshot(leases):
                self.state = {lease.subnet: lease for lease in leases}
            case Changed(lease):
                self.state[lease.subnet] = lease
            case Removed(subnet):
                self.state.pop(subnet, None)
