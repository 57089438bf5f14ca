"""What the CPUs of this machine do, from /proc/stat (proc(5)). It only reads."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_HERTZ = 100
"""USER_HZ: the unit of /proc/stat on every architecture that we run on."""

_WINDOW = 0.1
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds since boot, of one CPU or of all."""

    busy: float
    """In user, nice, system, hard and soft interrupt."""
    stolen: float
    """Ready to run while the hypervisor ran something else."""
    total: float

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Read the line of `name`, such as `cpu0`, or `cpu` for all together."""
        line = next(line for line in text.splitlines() if line.split()[0] == name)
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(field) / _HERTZ for field in line.split()[1:9]
        )
        busy = user + nice + system + irq + softirq
        return cls(busy, steal, busy + steal + idle + iowait)

    @classmethod
    def now(cls, name: str = "cpu") -> Self:
        """Read the present values."""
        return cls.parse(_STAT.read_text(encoding="ascii"), name)

    def __sub__(self, earlier: Self) -> "CpuTime":
        return CpuTime(
            self.busy - earlier.busy, self.stolen - earlier.stolen, self.total - earlier.total
        )

    @property
    def steal(self) -> float:
        """The stolen part, 0 to 1."""
        return self.stolen / self.total if self.total else 0.0

    @property
    def load(self) -> float:
        """The part that was not idle, 0 to 1."""
        return (self.busy + self.stolen) / self.total if self.total else 0.0


def is_quiet(*, limit: float, patience: float) -> bool:
    """Wait until all CPUs together are loaded less than `limit`; False after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        before = CpuTime.now()
        time.sleep(_WINDOW)  # the window that the load is taken over
        if (CpuTime.now() - before).load < limit:
            return True
        if time.monotonic() > deadline:
            return False
