"""Fixtures of the whole suite, and the rule that continuous integration may not skip for a lack.

A skip whose reason starts with `missing:` (a right, a program, a kernel feature) fails the run
where the environment says CI=true: there, everything that a test needs has to be present.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from itertools import count

import hypothesis
import pytest
from testbed import Cluster

hypothesis.settings.register_profile("kersey", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("kersey")

_MISSING = "missing:"
_ROOT_DIRECTORIES = ("netns", "programs", "e2e")
_LOG_LINES = 40
_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for as long as the suite runs, and never in the machine's own place.

    Only `tests/programs/test_loader.py` is about compilation; all others would wait for it. And
    heed SIGINT, which a shell has its background jobs ignore: what we start inherits that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "KERSEY_CACHE_DIR" not in os.environ:
        cache = tempfile.TemporaryDirectory()
        config.add_cleanup(cache.cleanup)
        os.environ["KERSEY_CACHE_DIR"] = cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that work on namespaces or programs where we are not root."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.parent.name in _ROOT_DIRECTORIES:
            item.add_marker(pytest.mark.skip(reason=f"{_MISSING} root"))


def skip_without(*programs: str) -> None:
    """Skip the running test unless all `programs` are on the path."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{_MISSING} {program}")


@pytest.fixture
def requires() -> Callable[..., None]:
    """Give tests the function to name the programs that they need."""
    return skip_without


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip_in_ci(report)
    if report.failed:
        report.sections += _daemon_logs(item)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip_in_ci(report)
    return report


def _refuse_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for something missing into a failure where nothing may be missing."""
    if not report.skipped or os.environ.get("CI") != "true":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if _MISSING in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be missing: {reason}"


def _daemon_logs(item: pytest.Item) -> list[tuple[str, str]]:
    """Return the last log lines of all daemons in the testbeds that the test used."""
    values = getattr(item, "funcargs", {}).values()
    return [
        (f"{node.name} kerseyd.log", node.daemon.log_tail(_LOG_LINES))
        for cluster in values
        if isinstance(cluster, Cluster)
        for node in cluster.nodes
        if node.daemon.log.exists()
    ]


def _new_cluster() -> Iterator[Cluster]:
    skip_without("ip", "ping", "etcd", "etcdctl")
    with Cluster(prefix=f"kt{next(_numbers)}-") as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Give one test an empty testbed: switch and etcd made, etcd not started, no nodes yet."""
    yield from _new_cluster()


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[Cluster]:
    """Give a module's tests an empty testbed to share."""
    yield from _new_cluster()


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Give a module's tests three nodes with running, ready daemons and two pods each."""
    skip_without("ip", "ping", "etcd", "etcdctl")
    with Cluster(prefix=f"kt{next(_numbers)}-") as cluster:
        cluster.start(nodes=3, pods=2)
        for node in cluster.nodes:
            node.daemon.wait_ready()
        yield cluster
