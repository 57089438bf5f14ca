"""What the control loop must do when, as values: the earliest wish for each task wins. Pure."""

from enum import StrEnum


class Task(StrEnum):
    """The things that the control loop does without a message telling it to."""

    REPAIR = "repair"
    """Look at the uplink and our device, then compare every object with the kernel."""
    RULES = "rules"
    """Compare masquerade and forward rules, and the blackhole route."""
    PORTS = "ports"
    """Look which pods came and went."""
    ROUTES = "routes"
    """Look whether nodes are reached another way than before."""
    MEMORY = "memory"
    """Give back what a burst of leases needed."""
    RETRY = "retry"
    """Try failed peers again."""


class Schedule:
    """Hold when each task is due, in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[Task, float] = {}

    def by(self, task: Task, due: float) -> None:
        """Do `task` at `due` at the latest."""
        self._due[task] = min(due, self._due.get(task, due))

    def take(self, now: float) -> tuple[Task, ...]:
        """Return the tasks whose time has come, and forget them."""
        ready = tuple(task for task, due in self._due.items() if due <= now)
        for task in ready:
            del self._due[task]
        return ready

    def delay(self, now: float, *, at_most: float) -> float:
        """Return seconds until the next task, from 0 to `at_most`."""
        return max(0.0, min([at_most, *(due - now for due in self._due.values())]))
