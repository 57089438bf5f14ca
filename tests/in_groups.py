"""Runs the whole suite as several pytest processes at a time, and adds up what they found.

Most of tests/e2e waits for kernels and daemons while the rest computes, so a few at once take
little longer than the longest. The arguments are a command that runs another one in namespaces of
its own (scripts/test has it): each group gets its own. Prints a line for each group as it ends, all
output of one that failed, the reason of every skip, and the sum. Exit status 1 if anything failed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from testbed.signals import exit_on_signals

_TESTS = Path(__file__).parent
_LONG = (
    "test_backends",
    "test_switching",
    "test_fast_path",
    "test_kube_daemon",
    "test_loader",
    "netns",
    "test_probes",
    "kube",
    "test_operator",
    "test_backends_traffic",
)
"""Started first, so that none of them is left alone at the end."""

_SPLIT = ("e2e", "programs")
"""The directories whose files are groups by themselves; any other directory is one."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one group's process found. `output` is all that it printed."""

    group: Path
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    status: int = 0
    seconds: float = 0.0
    output: str = ""

    @property
    def is_good(self) -> bool:
        """Return whether nothing failed and something ran."""
        return self.status == 0 and self.passed > 0

    def __str__(self) -> str:
        skipped = self.skipped.total()
        counts = f"{self.passed} passed, {self.failed} failed, {skipped} skipped"
        ended = "" if self.status in (0, 1) else f" (pytest ended with {self.status})"
        return f"{self.group.relative_to(_TESTS.parent)}: {counts} in {self.seconds:.0f} s{ended}"


def groups(tests: Path) -> list[Path]:
    """Return directories with tests, and the files of those that are split, longest first."""
    files = sorted(tests.rglob("test_*.py"))
    found = (path if path.parent.name in _SPLIT else path.parent for path in files)
    return sorted(dict.fromkeys(found), key=_rank)


def _rank(group: Path) -> int:
    return _LONG.index(group.stem) if group.stem in _LONG else len(_LONG)


class Runner:
    """Runs groups in processes; `stop` interrupts those that run, as Ctrl-C would."""

    def __init__(self, prefix: list[str]) -> None:
        self._prefix = prefix
        self._running: set[subprocess.Popen[str]] = set()

    def stop(self) -> None:
        for process in tuple(self._running):
            process.send_signal(signal.SIGINT)

    def run(self, group: Path) -> Result:
        """Run one group and read what it found."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory) / "report.xml"
            process = subprocess.Popen(
                [
                    *self._prefix,
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    f"--junitxml={report}",
                    group,
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=_TESTS.parent,
                text=True,
                errors="replace",
            )
            self._running.add(process)
            with process:
                output = process.communicate()[0]
            self._running.discard(process)
            counts = Counter(_outcomes(report)) if report.exists() else Counter[tuple[str, str]]()
        return Result(
            group,
            passed=counts["passed", ""],
            failed=counts["failed", ""],
            skipped=Counter({why: n for (kind, why), n in counts.items() if kind == "skipped"}),
            status=process.returncode,
            seconds=time.monotonic() - began,
            output=output,
        )


def _outcomes(report: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  # pytest wrote it
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            yield "failed", ""
        elif skipped is not None:
            yield "skipped", skipped.get("message", "no reason given")
        else:
            yield "passed", ""


def run_all(prefix: list[str]) -> Iterator[Result]:
    """Run all groups, a few at a time; yield each result as it is there."""
    runner = Runner(prefix)
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        try:
            for done in as_completed([pool.submit(runner.run, each) for each in groups(_TESTS)]):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()


def main(prefix: list[str]) -> int:
    """Run everything and tell; return the process's exit status."""
    exit_on_signals()
    began, results = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KERSEY_CACHE_DIR"] = cache  # one compiles for all
        for result in run_all(prefix):
            results.append(result)
            print(result, flush=True)
            if not result.is_good:
                print(result.output, flush=True)
    skipped = sum((result.skipped for result in results), Counter[str]())
    for reason, count in skipped.most_common():
        print(f"skipped {count}: {reason}")
    for result in results:
        if not result.is_good:
            print(f"FAILED {result}")
    print(f"in {time.monotonic() - began:.0f} s")
    passed, failed = (sum(getattr(each, kind) for each in results) for kind in ("passed", "failed"))
    print(f"{passed} passed, {failed} failed, {skipped.total()} skipped")
    return 0 if all(result.is_good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
