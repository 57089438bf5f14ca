"""How the daemon begins: which lease store it opens, and what it waits for before anything else."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NoReturn

import pytest
from kersey_control import daemon, notices
from kersey_control.daemon import (
    MAX_SILENCE,
    open_store,
    prepare_datapath,
    wait_for_start,
    with_public_ip,
)
from kersey_control.errors import InvalidInputError, StoreUnavailableError, UnavailableError
from kersey_control.events import StoreEvent
from kersey_control.health import HealthState
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.notice import Notice
from kersey_control.notices import Notices
from kersey_control.options import Options, parse_options
from kersey_control.status import Status
from kersey_control.subnets.base import Claim, OwnLease, Remembered
from kersey_loader.pins import COMPILE_SECONDS

CONFIG = b'{"Network":"10.244.0.0/16"}'
POD_CIDR = IPv4Network("10.244.7.0/26")
GIVEN = Remembered("vxlan", b"{}", POD_CIDR, None)


class SlowStore:
    """Answer with the next of `answers`, an error or what is remembered.

    `seen` has what the status said of the store at each try.
    """

    def __init__(self, status: Status, *answers: Remembered | Exception) -> None:
        self._status = status
        self._answers = iter(answers)
        self.seen: list[tuple[bool, str]] = []
        self.told: list[Notice] = []

    def read_config(self) -> bytes:
        self.seen.append((self._status.store_connected, self._status.store_trouble))
        return CONFIG

    def remembered(self) -> Remembered:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def announce_network(self) -> None:
        raise NotImplementedError

    def tell(self, notice: Notice) -> None:
        self.told.append(notice)

    def close(self) -> None:
        raise NotImplementedError

    def watch_config(self, stop: threading.Event) -> Iterator[bytes]:
        raise NotImplementedError

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        raise NotImplementedError

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        raise NotImplementedError

    def watch(self, stop: threading.Event) -> Iterator[StoreEvent]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "START_RETRY_INITIAL", 0.001)
    monkeypatch.setattr(daemon, "START_RETRY_CAP", 0.002)
    monkeypatch.setattr(notices, "SETTLE", 0.0)


def test_the_start_waits_for_the_api_and_for_a_subnet_inside_of_the_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = Status()
    store = SlowStore(
        status,
        StoreUnavailableError("one"),
        StoreUnavailableError("two"),
        InvalidInputError(field="node n: podCIDR", value="", expected="an IPv4 subnet"),
        Remembered(subnet=IPv4Network("10.245.1.0/24")),
        GIVEN,
    )
    start = wait_for_start(store, status, threading.Event(), Notices(store.tell))
    assert start is not None
    assert start.known is GIVEN
    assert (start.config.network, start.config.subnet_len) == (IPv4Network("10.244.0.0/16"), 26)
    troubles = [trouble for _, trouble in store.seen[1:]]
    assert troubles[:2] == ["one", "two"]
    assert troubles[2].startswith("node n: podCIDR: got ''")
    assert troubles[3] == (
        "podCIDR: got '10.245.1.0/24', expected a subnet of Network 10.244.0.0/16"
    )
    assert not any(connected for connected, _ in store.seen)
    assert (status.store_connected, status.store_trouble) == (True, "")
    told = [record for record in caplog.records if record.message == "cannot start yet, waiting"]
    assert len(told) == 3  # the second try without an answer is the same trouble
    (notice,) = store.told  # of the store's silence nobody can be told
    assert notice == Notice("CannotStart", troubles[2], is_warning=True)


def test_an_outage_is_not_told_as_the_end_of_what_was_lacking() -> None:
    status = Status()
    lack = InvalidInputError(field="node n: podCIDR", value="", expected="an IPv4 subnet")
    answers = (lack, StoreUnavailableError("one"), StoreUnavailableError("two"), lack, GIVEN)
    store = SlowStore(status, *answers)
    assert wait_for_start(store, status, threading.Event(), Notices(store.tell)) is not None
    assert [notice.reason for notice in store.told] == ["CannotStart"]


def test_the_end_is_not_held_up_by_the_wait() -> None:
    status, stop = Status(), threading.Event()
    store = SlowStore(status)
    stop.set()
    assert wait_for_start(store, status, stop, Notices(store.tell)) is None
    assert store.seen == []


def test_a_daemon_whose_compiler_runs_is_alive_for_as_long_as_that_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = Status(heartbeat=time.monotonic() - 2 * MAX_SILENCE)
    troubles: list[str] = []

    def trouble_in(seconds: float) -> str:
        return HealthState(status, MAX_SILENCE, lambda: time.monotonic() + seconds)().trouble

    def compile_slowly(_options: Options, _config: NetworkConfig) -> NoReturn:
        troubles.extend(trouble_in(seconds) for seconds in (0.0, COMPILE_SECONDS, 2000.0))
        raise UnavailableError("no compiler")

    monkeypatch.setattr(daemon, "open_fast_path", compile_slowly)
    assert prepare_datapath(Options(), parse_network_config(CONFIG, None), status) is None
    assert troubles[:2] == ["", ""]
    assert "silent" in troubles[2]  # the compiler's limit did not hold
    assert trouble_in(0.0) == ""
    assert "silent" in trouble_in(MAX_SILENCE + 1)  # from now on turns are due


INTERRUPTED = """
import signal, sys, threading, types
from kersey_control import daemon

class Interrupted(threading.Event):
    def wait(self, timeout=None):
        with self._cond:
            signal.raise_signal(signal.SIGTERM)
        return super().wait(timeout)

daemon.threading = types.SimpleNamespace(Event=Interrupted, Thread=threading.Thread)
daemon.START_RETRY_INITIAL = daemon.START_RETRY_CAP = 3600.0
daemon.main()
"""


def test_a_signal_ends_a_daemon_that_waits_for_its_store_even_in_the_midst_of_that_wait(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", INTERRUPTED),
            *(f"--subnet-file={tmp_path}/subnet.env", f"--state-dir={tmp_path}"),
            *("--etcd-endpoints=http://127.0.0.1:1", "--probe-interval=0"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "cannot start yet, waiting" in done.stderr
    assert "kerseyd ends" in done.stderr
    assert done.returncode == 0


def test_an_administrators_address_stands_for_the_flag() -> None:
    options = parse_options(["--public-ip=198.18.0.1"], {})
    address = IPv4Address("198.18.0.9")
    assert with_public_ip(options, Remembered(node_public_ip=address)).public_ip == address
    assert with_public_ip(options, Remembered()) is options


def test_outside_of_a_cluster_the_store_in_kubernetes_needs_to_be_told_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_NAME", "n")
    with pytest.raises(InvalidInputError, match="--kube-api-url: got ''"):
        open_store(parse_options(["--kube-subnet-mgr"], {}))


@pytest.mark.parametrize(
    ("arguments", "loaded", "absent"),
    [
        (["--kube-subnet-mgr", "--kube-api-url=http://127.0.0.1:1"], "kube", ("grpc", "etcd3")),
        ([], "etcd", ()),
    ],
)
def test_only_the_store_that_is_asked_for_is_loaded(
    arguments: list[str], loaded: str, absent: tuple[str, ...]
) -> None:
    program = (
        "import sys\n"
        "from kersey_control.daemon import open_store\n"
        "from kersey_control.options import parse_options\n"
        "open_store(parse_options(sys.argv[1:], {})).close()\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"NODE_NAME": "n"},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stdout.split())
    assert f"kersey_control.subnets.{loaded}" in modules
    other = "etcd" if loaded == "kube" else "kube"
    assert modules.isdisjoint({*absent, f"kersey_control.subnets.{other}"})
