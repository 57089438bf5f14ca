"""kerseyd, the process: command line, lock, signals, servers, start-up and exit status.

Exit status: 0 after SIGINT or SIGTERM, 1 for a fault at the start that no waiting mends, 2 for a
bad command line. Kernel state stays at every exit.
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kersey_loader.datapath import Datapath
from kersey_loader.pins import COMPILE_SECONDS

from kersey_control import __version__
from kersey_control.agent import Agent, FlushAsked, Inbox, Stop
from kersey_control.backends.base import Backend
from kersey_control.backends.choice import Host, backend_of
from kersey_control.backends.pumped import PumpOptions
from kersey_control.backoff import Backoff
from kersey_control.errors import (
    InvalidInputError,
    KerseyError,
    NotWantedError,
    StoreError,
    UnavailableError,
)
from kersey_control.fast_path import FastPath, directory_of, open_fast_path
from kersey_control.headroom import headroom_name
from kersey_control.health import HealthServer, HealthState
from kersey_control.host_network import find_uplink
from kersey_control.instance import instance_of
from kersey_control.leftovers import remove_other_devices, remove_programs
from kersey_control.local_node import LocalNode
from kersey_control.lock import sole_user
from kersey_control.logs import configure_logging
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.netlink import Links
from kersey_control.node_identity import node_id, read_machine_id
from kersey_control.notices import Notices
from kersey_control.options import Datapath as DatapathChoice
from kersey_control.options import Options, read_options
from kersey_control.probes.prober import Prober
from kersey_control.rtnetlink import Rtnl
from kersey_control.sdnotify import ServiceManager
from kersey_control.status import Status
from kersey_control.status_socket import StatusSocket
from kersey_control.subnet_file import read_subnet_file
from kersey_control.subnets.base import NodeStore, Remembered
from kersey_control.told import ToldOptions
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

START_RETRY_INITIAL = 0.5
START_RETRY_CAP = 5.0
FLUSH_WAIT = 10.0
"""Seconds that a request waits for its turn in the control loop."""
MAX_SILENCE = 30.0
"""Seconds without a turn of the control loop after which /healthz reports it."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the lease store must have said before anything can be set up."""

    config: NetworkConfig
    known: Remembered


def main() -> None:
    """Run the daemon by the command line and the environment, and exit."""
    options = read_options(sys.argv[1:], os.environ)
    configure_logging(options.log_format, options.effective_log_level)
    if options.ignored_arguments:  # named by the first alone: others may carry a password
        first, *others = options.ignored_arguments
        logger.warning(
            "arguments behind the last flag ignored",
            extra={"first": first, "further": len(others)},
        )
    try:
        serve(options)
    except KerseyError as error:
        logger.critical("cannot go on", extra={"reason": str(error)})
        sys.exit(1)


def serve(options: Options) -> None:
    """Run one node until a signal. Raises KerseyError for what no waiting mends."""
    status = Status(heartbeat=time.monotonic())
    inbox: Inbox = queue.SimpleQueue()
    stop = threading.Event()
    asked: queue.SimpleQueue[Stop] = queue.SimpleQueue()
    _stop_on_signals(inbox, asked)
    logger.info("kerseyd starts", extra={"version": __version__})
    told = _told(options)
    with ExitStack() as opened:
        opened.enter_context(sole_user(options.subnet_file))
        if options.healthz_port:
            state = HealthState(status, MAX_SILENCE, time.monotonic)
            opened.enter_context(
                HealthServer(state, address=options.healthz_ip, port=options.healthz_port)
            )
        if options.metrics_port:
            # Here, so that only who is scraped pays for the exposition library's memory.
            from kersey_control.metrics.server import serve_metrics  # noqa: PLC0415

            opened.enter_context(serve_metrics(status, options, told))
        opened.enter_context(StatusSocket(status, options.state_dir, told, partial(_flush, inbox)))
        store = open_store(options)
        opened.callback(store.close)
        # A call in progress would hold up the end by some seconds for each silent endpoint.
        closer = threading.Thread(target=_close_at, args=(asked, stop, store), name="store-closer")
        closer.daemon = True  # a fault at the start ends us without a signal
        closer.start()
        if options.probe_interval:
            opened.enter_context(Prober(status, options))
        notices = Notices(store.tell)
        start = wait_for_start(store, status, stop, notices)
        if start is not None:
            options = with_public_ip(options, start.known)
            links = opened.enter_context(Links(instance_of(options.subnet_file)))
            rtnl = opened.enter_context(Rtnl())
            datapath = prepare_datapath(options, start.config, status)
            host = _host(options, start.known, links, rtnl, datapath)
            backend = backend_of(start.config, host)
            opened.callback(backend.close)
            _prepare(
                options=options,
                start=start,
                store=store,
                status=status,
                inbox=inbox,
                host=host,
                backend=backend,
                datapath=datapath,
                notices=notices,
            ).run()
    logger.info("kerseyd ends, the kernel goes on forwarding")


def _told(options: Options) -> ToldOptions:
    return ToldOptions(
        subnet_file=str(options.subnet_file.absolute()),
        pins=str(directory_of(options)),
        datapath=options.datapath,
        admission=options.admission,
        spoof_check=options.spoof_check,
        max_flows=options.max_flows,
        renew_margin=60.0 * options.subnet_lease_renew_margin,
        store="kubernetes" if options.kube_subnet_mgr else "etcd",
        etcd_endpoints=() if options.kube_subnet_mgr else options.etcd_endpoints,
        etcd_prefix=options.etcd_prefix,
        probe_interval=options.probe_interval,
        probe_rate=options.probe_rate,
        probe_port=options.probe_port,
    )


def _flush(inbox: Inbox) -> None:
    """Have the control loop void every admitted flow. Raises UnavailableError where it cannot."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    inbox.put(FlushAsked(answers.put))
    try:
        trouble = answers.get(timeout=FLUSH_WAIT)
    except queue.Empty:
        trouble = f"the control loop did not take the request within {FLUSH_WAIT:g} s"
    if trouble:
        raise UnavailableError(trouble)


def open_store(options: Options) -> NodeStore:
    """Return the lease store that is asked for. What only the other one needs is never loaded.

    Raises InvalidInputError for options that lead to no store.
    """
    if options.kube_subnet_mgr:
        from kersey_control.subnets.kube import KubeOptions, KubeStore  # noqa: PLC0415

        return KubeStore(KubeOptions.from_flags(options))
    from kersey_control.subnets.etcd import EtcdOptions, EtcdStore  # noqa: PLC0415

    return EtcdStore(EtcdOptions.from_flags(options))


def with_public_ip(options: Options, known: Remembered) -> Options:
    """Return the options with the administrator's address for this node, if there is one."""
    if known.node_public_ip is None:
        return options
    return replace(options, public_ip=known.node_public_ip)


def _host(
    options: Options, known: Remembered, links: Links, rtnl: Rtnl, datapath: Datapath | None
) -> Host:
    return Host(
        node_id=_identity(options),
        links=links,
        rtnl=rtnl,
        underlay=Underlay(rtnl),
        pump=PumpOptions(has_programs=datapath is not None, check=options.spoof_check),
        last_type=known.backend_type,
        last_data=known.backend_data,
    )


def _close_at(asked: "queue.SimpleQueue[Stop]", stop: threading.Event, store: NodeStore) -> None:
    """Set `stop` and end what the store is being asked as soon as our own end is asked for."""
    asked.get()
    stop.set()
    store.close()


def wait_for_start(
    store: NodeStore, status: Status, stop: threading.Event, notices: Notices
) -> Start | None:
    """Return what the store says once it is enough to start with, None if `stop` came first.

    Enough is a valid network config and, where subnets are given, one of that network for us.
    """
    backoff = Backoff(initial=START_RETRY_INITIAL, cap=START_RETRY_CAP)
    reported = ""
    while not stop.is_set():
        status.heartbeat = time.monotonic()
        try:
            start = _read_start(store)
        except (StoreError, InvalidInputError) as error:
            status.store_trouble = str(error)
            if not isinstance(error, StoreError):  # an outage says nothing of what was lacking
                status.start_trouble = str(error)
            notices.look(status, time.monotonic())
            # An outage by its kind, since its words differ from try to try; a config by its fault.
            kind = type(error).__name__ if isinstance(error, StoreError) else str(error)
            if kind != reported:
                reported = kind
                logger.warning("cannot start yet, waiting", extra={"reason": str(error)})
            stop.wait(backoff.delay())
        else:
            status.store_connected, status.store_trouble = True, ""
            status.start_trouble = ""
            return start
    return None


def _read_start(store: NodeStore) -> Start:
    """Ask the store once. Raises StoreError, or InvalidInputError for what is missing or wrong."""
    text, known = store.read_config(), store.remembered()
    return Start(parse_network_config(text, known.subnet), known)


def _prepare(
    *,
    options: Options,
    start: Start,
    store: NodeStore,
    status: Status,
    inbox: Inbox,
    host: Host,
    backend: Backend,
    datapath: Datapath | None,
    notices: Notices,
) -> Agent:
    """Choose the uplink, prepare the device, and return the control loop that keeps them."""
    config = start.config
    _warn_of_what_is_missing(config)
    uplink = find_uplink(options)
    _log_uplink(uplink)
    _remove_leftovers(options, backend, host.links, datapath)
    backend.prepare(uplink)
    status.backend, status.network = backend.name, config.network
    status.device = backend.device_name or ""
    status.tunnel = str(backend.tunnel or "")
    status.uplink, status.mtu = uplink, backend.mtu
    return Agent(
        options=options,
        config=config,
        node_id=host.node_id,
        previous=read_subnet_file(options.subnet_file),
        given=start.known.subnet,
        store=store,
        uplink=uplink,
        backend=backend,
        rtnl=host.rtnl,
        underlay=host.underlay,
        local=LocalNode(
            options=options, config=config, backend=backend, links=host.links, status=status
        ),
        fast_path=None
        if datapath is None
        else FastPath(
            datapath=datapath,
            options=options,
            backend=backend,
            network=config,
            links=host.links,
            underlay=host.underlay,
            status=status,
        ),
        status=status,
        service=ServiceManager(os.environ),
        notices=notices,
        inbox=inbox,
    )


def _remove_leftovers(
    options: Options, backend: Backend, links: Links, datapath: Datapath | None
) -> None:
    """Remove what an earlier run left that this one does not use."""
    instance = instance_of(options.subnet_file)
    if datapath is None:
        remove_programs(directory_of(options), instance)
    room = {headroom_name(instance)} if datapath is not None and backend.overhead else set()
    remove_other_devices(links, frozenset({backend.device_name or "", *room}))


def prepare_datapath(options: Options, config: NetworkConfig, status: Status) -> Datapath | None:
    """Return the loaded fast path, or None with the reason in `Status` and the log.

    Raises UnavailableError where --datapath=bpf leaves no choice.
    """
    datapath: Datapath | None = None
    try:
        with _busy(status, COMPILE_SECONDS):
            datapath = open_fast_path(options, config)
    except UnavailableError as error:
        if options.datapath is DatapathChoice.BPF:
            raise
        status.datapath, status.datapath_reason = "netlink", str(error)
        if not isinstance(error, NotWantedError):
            status.fast_path_lack = f"packets take the kernel's own path: {error}"
    else:
        adopted = "adopted from the last run" if datapath.adopted else "loaded"
        status.datapath, status.datapath_reason = "bpf", adopted
    logger.info("datapath", extra={"mode": status.datapath, "reason": status.datapath_reason})
    return datapath


@contextmanager
def _busy(status: Status, seconds: float) -> Iterator[None]:
    """Have nobody expect a turn of the control loop meanwhile, for `seconds` at most.

    The service manager needs no word: its watchdog begins with READY=1 or our first sign of life.
    """
    status.busy_until = time.monotonic() + seconds
    try:
        yield
    finally:
        status.heartbeat, status.busy_until = time.monotonic(), 0.0


def _warn_of_what_is_missing(config: NetworkConfig) -> None:
    if config.network_v6 is not None:
        logger.warning("EnableIPv6 is set, but this version carries IPv4 only")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    if forwarding.read_text().strip() == "0":
        logger.warning(
            "the kernel does not forward IPv4, pods stay unreachable",
            extra={"cure": "sysctl -w net.ipv4.ip_forward=1"},
        )


def _log_uplink(uplink: Uplink) -> None:
    logger.info(
        "uplink chosen",
        extra={
            "interface": uplink.name,
            "address": str(uplink.address),
            "public_ip": str(uplink.public_ip),
            "mtu": uplink.mtu,
            "reason": uplink.reason,
        },
    )


def _identity(options: Options) -> str:
    try:
        return node_id(options.node_id, machine_id=read_machine_id(), state_dir=options.state_dir)
    except OSError as error:
        raise InvalidInputError(
            field="state-dir", value=str(options.state_dir), expected=f"a usable folder ({error})"
        ) from error


def _stop_on_signals(inbox: Inbox, asked: "queue.SimpleQueue[Stop]") -> None:
    """Put a Stop into both whenever a signal asks for our end.

    Nothing else: the handler runs in the midst of whatever the main thread does. SimpleQueue.put is
    reentrant; an Event's lock may be held by this very thread, which waits on it.
    """

    def handle(_number: int, _frame: object) -> None:
        for each in (inbox, asked):
            each.put(Stop())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
