"""The control loop: keep the kernel equal to the leases.

Everything that happens - a lease event, a change in the kernel, a new config, a timer - becomes a
message in one inbox and is handled by one thread, so that no two of them ever interleave. What may
block (the lease store) runs on threads of its own and only sends messages.

The loop never ends because of the store, a peer or the kernel: it reports, keeps what works, and
tries again. It takes no kernel state away at exit: packets flow while no daemon runs.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self, TypeAlias

from kersey_control.backends.base import Backend
from kersey_control.errors import (
    DuplicateNodeError,
    InvalidInputError,
    KernelError,
    KerseyError,
    UplinkError,
)
from kersey_control.events import (
    Changed,
    Forgotten,
    Lost,
    Removed,
    Restored,
    Skipped,
    Snapshot,
    StoreEvent,
)
from kersey_control.fast_path import FastPath
from kersey_control.forwarding import AuditResult, Forwarding, Home
from kersey_control.host_network import find_uplink
from kersey_control.keeper import LeaseHeld, LeaseKeeper, LeaseTrouble
from kersey_control.local_node import LocalNode
from kersey_control.memory import release_memory
from kersey_control.monitor import ChangeKind, KernelChange, Monitor, Watched, is_relevant
from kersey_control.netconfig import NetworkConfig, apply_live, compare, parse_network_config
from kersey_control.notices import Notices
from kersey_control.options import Options
from kersey_control.peers import Peers
from kersey_control.pod_ports import read_pod_ports
from kersey_control.reconcile import StrayRoute
from kersey_control.rtnetlink import Rtnl
from kersey_control.ruleset_monitor import RulesetMonitor
from kersey_control.schedule import Schedule, Task
from kersey_control.sdnotify import ServiceManager
from kersey_control.status import Status
from kersey_control.subnets.base import Claim, NodeStore, OwnLease
from kersey_control.table import LeaseTable
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

TURN = 1.0
"""Seconds after which the loop turns with nothing to do, so that /healthz sees it alive."""

SETTLE = 0.05
"""Seconds to wait after a change in the kernel for the rest of what belongs to it."""

PORTS_SETTLE = 0.01
"""Seconds to wait after a device came or went: a pod's veth is moved, enslaved and set up."""

ROUTES_SETTLE = 0.2
"""Seconds to wait after a change of routes: routing daemons change many at once."""

RULES_SETTLE = 0.3
"""Seconds to wait after a change of rules: kube-proxy commits in bursts."""

REPAIR_RETRY = 2.0
TIDY_REST = 2.0
"""Seconds until nothing is on its way any more that an XDP program opened before it went."""

HOST_ROUTE = 32
MEMORY_REST = 1.0
BURST = 32
"""Store events at once after which it is worth giving memory back."""
PUMP_RESTART = 5.0
JOIN_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class ConfigText:
    """The network config as the store holds it now."""

    text: bytes


@dataclass(frozen=True, slots=True)
class KernelChanged:
    """Something of ours, or of the uplink, may differ from what we want."""


@dataclass(frozen=True, slots=True)
class RulesChanged:
    """Somebody committed a change of the packet filter's rules."""


@dataclass(frozen=True, slots=True)
class PortsChanged:
    """A device, an address or a host route came or went: perhaps a pod."""


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """A route that is not a pod's came or went: perhaps the way to a node."""


@dataclass(frozen=True, slots=True)
class FlushAsked:
    """An operator wants every admitted flow witnessed anew; `answer` gets what failed, or ''."""

    answer: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon was asked to end."""


HostNotice: TypeAlias = KernelChanged | RulesChanged | PortsChanged | RoutesChanged
Notice: TypeAlias = LeaseHeld | LeaseTrouble | ConfigText | HostNotice | FlushAsked | Stop
Message: TypeAlias = StoreEvent | Notice
Inbox: TypeAlias = "queue.SimpleQueue[Message]"


_EVERYTHING = (Task.REPAIR, Task.RULES, Task.PORTS, Task.ROUTES)
"""What must be done for this node to be as it should, whatever has happened."""

_ANSWERS: dict[type[HostNotice], tuple[Task, float]] = {
    KernelChanged: (Task.REPAIR, SETTLE),
    RulesChanged: (Task.RULES, RULES_SETTLE),
    PortsChanged: (Task.PORTS, PORTS_SETTLE),
    RoutesChanged: (Task.ROUTES, ROUTES_SETTLE),
}


@dataclass(frozen=True, slots=True)
class Overlay:
    """What exists once we have a lease: the peers of this network, and how they are carried out."""

    lease: OwnLease
    forwarding: Forwarding
    peers: Peers


class Agent:
    """One node at work, from a prepared device to the end of `run`.

    `previous` is the subnet of the last run, None if unknown. It stays what it was: the keeper
    remembers what we have now. `given` is the subnet that the network is cut by where the store
    gives us one.
    """

    def __init__(
        self,
        *,
        options: Options,
        config: NetworkConfig,
        node_id: str,
        previous: IPv4Network | None,
        given: IPv4Network | None,
        store: NodeStore,
        uplink: Uplink,
        backend: Backend,
        rtnl: Rtnl,
        underlay: Underlay,
        local: LocalNode,
        fast_path: FastPath | None,
        status: Status,
        service: ServiceManager,
        notices: Notices,
        inbox: Inbox,
    ) -> None:
        self._options = options
        self._config = config
        self._node_id = node_id
        self._previous = previous
        self._given = given
        self._store = store
        self._uplink = uplink
        self._backend = backend
        self._rtnl = rtnl
        self._underlay = underlay
        self._local = local
        self._fast_path = fast_path
        self._status = status
        self._service = service
        self._notices = notices
        self._inbox = inbox
        self._schedule = Schedule()
        self._is_stopped = False
        self._overlay: Overlay | None = None
        self._reclaiming = False
        self._ports_pending = False
        self._routes_pending = False
        self._is_attached = False
        self._lease_watch = Pump("lease-watch", store.watch, inbox)
        self._keeper = LeaseKeeper(
            store=store,
            config=config,
            claim=self._claim(),
            renew_margin=60.0 * options.subnet_lease_renew_margin,
            report=inbox.put,
        )

    def run(self) -> None:
        """Claim a lease and keep the node up until a Stop message.

        Raises DuplicateNodeError if another node holds a lease for our address at the start.
        """
        with ExitStack() as running:
            running.enter_context(Monitor(self._hear_kernel, frozenset({self._rtnl.port_id})))
            running.enter_context(RulesetMonitor(lambda: self._inbox.put(RulesChanged())))
            running.enter_context(self._keeper)
            running.enter_context(Pump("config-watch", self._config_texts, self._inbox))
            self._schedule.by(Task.RULES, time.monotonic() + self._options.iptables_resync)
            self._schedule.by(Task.REPAIR, time.monotonic() + self._options.audit_interval)
            while not self._is_stopped:
                self._turn(running)
            self._service.stopping()

    def _turn(self, running: ExitStack) -> None:
        """Handle the messages that wait, then the tasks that are due, and tell what came of it."""
        self._status.heartbeat = now = time.monotonic()
        self._service.alive()
        messages = self._wait(self._schedule.delay(now, at_most=TURN))
        events: list[StoreEvent] = []
        for message in messages:
            if isinstance(message, StoreEvent):
                events.append(message)
            else:
                self._survive(partial(self._notice, message, running))
        if events and not self._survive(partial(self._take_events, events)):
            self._lease_watch.start_over()  # which of them the table has is anyone's guess
        for task in self._schedule.take(time.monotonic()):
            self._survive(partial(self._do, task))
        self._survive(lambda: self._notices.look(self._status, time.monotonic()))

    def _survive(self, step: Callable[[], None]) -> bool:
        """Take one step and return whether it was done.

        Only an error for the operator ends the daemon, a defect never does: nobody else keeps the
        kernel right. Whatever the step was to see to, everything is checked again soon.
        """
        try:
            step()
        except DuplicateNodeError:
            raise
        except Exception:
            logger.exception("control loop failed in a step, everything is checked again")
            self._status.loop_failures += 1
            again = time.monotonic() + REPAIR_RETRY
            for task in _EVERYTHING:
                self._schedule.by(task, again)
            return False
        return True

    def _wait(self, timeout: float) -> list[Message]:
        """Return all messages that wait, at least one unless `timeout` seconds pass without."""
        messages: list[Message] = []
        try:
            messages.append(self._inbox.get(timeout=timeout))
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    def _notice(self, message: Notice, running: ExitStack) -> None:
        match message:
            case LeaseHeld(own):
                self._hold(own, running)
            case LeaseTrouble(error):
                if self._overlay is None and isinstance(error, DuplicateNodeError):
                    raise error
                self._status.lease_trouble = str(error)
                logger.error("lease not written, trying on", extra={"reason": str(error)})
            case ConfigText(text):
                self._take_config(text)
            case FlushAsked(answer):
                answer(self._flush())
            case Stop():
                self._is_stopped = True
            case _:
                self._heed(message)

    def _flush(self) -> str:
        """Void every admitted flow; return why that failed, empty if it did not."""
        if self._fast_path is None:
            return f"there is no fast path: {self._status.datapath_reason}"
        self._fast_path.flush()
        return self._status.fast_path_troubles.get("flush", "")

    def _heed(self, message: HostNotice) -> None:
        """Schedule what a change on this host calls for."""
        task, settle = _ANSWERS[type(message)]
        self._schedule.by(task, time.monotonic() + settle)
        match message:
            case RulesChanged() if self._fast_path is not None:
                self._fast_path.flush()
            case _:
                pass

    def _do(self, task: Task) -> None:
        now = time.monotonic()
        match task:
            case Task.REPAIR:
                self._repair(now)
            case Task.RULES:
                self._local.check_rules()
                if self._fast_path is not None:
                    self._fast_path.check_admission()
                self._schedule.by(Task.RULES, now + self._options.iptables_resync)
            case Task.MEMORY:
                release_memory()
            case Task.ROUTES:
                self._look_at_routes(now)
            case Task.PORTS:
                self._ports_pending = False
                self._follow_ports()
            case Task.RETRY if self._overlay is not None:
                self._overlay.peers.retry_due(now)
                self._schedule_retry(self._overlay)
        self._status.reconciles.observe(task, time.monotonic() - now)

    # Our own lease

    def _claim(self) -> Claim:
        return Claim(
            node_id=self._node_id,
            public_ip=self._uplink.public_ip,
            backend_type=self._backend.lease_type,
            backend_data=self._backend.lease_data,
            previous=self._previous,
        )

    def _hold(self, own: OwnLease, running: ExitStack) -> None:
        """Take note of our lease; move in if it is the first one, or another subnet than before."""
        before, self._reclaiming = self._overlay, False
        self._status.lease_trouble = ""
        self._status.lease_expires_at = own.expires_at
        if before is not None and before.lease.lease.subnet == own.lease.subnet:
            before.peers.hold(own.lease)
            self._overlay = Overlay(own, before.forwarding, before.peers)
            return
        logger.info(
            "lease held",
            extra={"subnet": str(own.lease.subnet), "public_ip": str(own.lease.public_ip)},
        )
        self._status.subnet = own.lease.subnet
        self._local.settle(own.lease.subnet)
        if before is None:
            overlay = self._open_overlay(own)
            if self._fast_path is not None:
                self._fast_path.settle(subnet=own.lease.subnet, uplink=self._uplink)
            running.enter_context(self._lease_watch)
            self._overlay = overlay  # unless a defect came before: each repair has us told again
            return
        logger.error(
            "our subnet is another one now: pods with addresses of the old one lose their way",
            extra={"before": str(before.lease.lease.subnet), "now": str(own.lease.subnet)},
        )
        before.peers.hold(own.lease)
        self._overlay = Overlay(own, before.forwarding, before.peers)
        self._schedule.by(Task.REPAIR, time.monotonic())

    def _open_overlay(self, own: OwnLease) -> Overlay:
        forwarding = Forwarding(self._backend, self._rtnl, self._home(own))
        peers = Peers(
            table=LeaseTable(own.lease),
            backend=self._backend,
            forwarding=forwarding,
            underlay=self._underlay,
            followers=(
                *self._backend.followers,
                *((self._fast_path,) if self._fast_path is not None else ()),
            ),
            status=self._status,
        )
        return Overlay(own, forwarding, peers)

    def _home(self, own: OwnLease) -> Home:
        return Home(
            network=self._config.network,
            subnet=own.lease.subnet,
            addresses=frozenset({self._uplink.address, self._uplink.public_ip}),
        )

    # The leases of others

    def _take_events(self, events: Sequence[StoreEvent]) -> None:
        """Carry out store events that came together; the kernel's answer decides about ready."""
        overlay = self._overlay
        if overlay is None:
            return
        for event in events:
            self._note(event)
        now = time.monotonic()
        try:
            overlay.peers.apply(events, now)
        except KernelError as error:
            self._postpone_repair(error)
        else:
            if any(isinstance(event, Snapshot) for event in events):
                self._become_ready()
        self._schedule_retry(overlay)
        if len(events) > BURST or any(isinstance(event, Snapshot) for event in events):
            self._schedule.by(Task.MEMORY, now + MEMORY_REST)
        if overlay.peers.own_missing and not self._reclaiming:
            logger.warning("our lease is gone from the store or changed, writing it again")
            self._reclaiming = True
            self._keeper.reclaim()
        self._status.reconciles.observe("events", time.monotonic() - now)

    def _note(self, event: StoreEvent) -> None:
        """Keep the store's state in `Status`, one log line a change of state."""
        status = self._status
        match event:
            case Snapshot(leases, skipped):
                status.resyncs += 1
                status.skipped = {}
                status.store_connected, status.store_trouble = True, ""
                logger.info("leases read", extra={"leases": len(leases), "skipped": len(skipped)})
                for record in skipped:
                    self._note(record)
            case Skipped(record, reason):
                status.skipped_records += 1
                status.skipped = {**status.skipped, record: reason}
                logger.warning("record skipped", extra={"record": record, "reason": reason})
            case Lost(reason):
                status.store_losses += 1
                status.store_connected, status.store_trouble = False, reason
                status.store_lost_at = time.monotonic()
                logger.warning(
                    "lease store lost, forwarding goes on with what is known",
                    extra={"reason": reason},
                )
            case Restored():
                status.store_reconnects += 1
                status.store_connected, status.store_trouble = True, ""
                logger.info("lease store answers again")
            case Changed(lease):
                logger.debug("lease event", extra={"event": "Changed"})
                self._forget_skipped(lease.node_id)
            case Forgotten(record):
                self._forget_skipped(record)
            case Removed():
                logger.debug("lease event", extra={"event": "Removed"})

    def _forget_skipped(self, record: str) -> None:
        found = self._status.skipped
        if record in found:
            self._status.skipped = {name: why for name, why in found.items() if name != record}

    def _become_ready(self) -> None:
        if not self._status.ready:
            self._start_fast_path()
            self._status.ready = True
            peers = self._status.peers_programmed
            logger.info("ready", extra={"peers": peers})
            self._service.ready(f"{peers} peers programmed")
            self._store.announce_network()

    def _start_fast_path(self) -> None:
        """Attach, now that every peer is in the maps: the sender check knows its friends."""
        if self._fast_path is not None:
            self._is_attached = True
            self._attach(self._fast_path)
            self._fast_path.retire_old()

    def _attach(self, fast_path: FastPath) -> None:
        fast_path.attach()
        self._follow_ports()
        if fast_path.is_untidy:
            self._schedule.by(Task.REPAIR, time.monotonic() + TIDY_REST)

    def _follow_ports(self) -> None:
        if self._fast_path is None or self._overlay is None or not self._is_attached:
            return
        try:
            found = read_pod_ports(
                self._rtnl,
                subnet=self._overlay.lease.lease.subnet,
                overlay=self._backend.ifindex,
                uplink=self._uplink.ifindex,
            )
        except KernelError as error:
            self._postpone_repair(error)
        else:
            self._fast_path.follow_ports(found)

    def _schedule_retry(self, overlay: Overlay) -> None:
        if overlay.forwarding.next_retry is not None:
            self._schedule.by(Task.RETRY, overlay.forwarding.next_retry)

    # The kernel

    def _hear_kernel(self, change: KernelChange) -> None:
        """Decide on the monitor's thread what is worth a message: pods come and go all the time."""
        overlay = self._overlay
        watched = Watched(
            overlay=self._backend.ifindex,
            uplink=self._uplink.ifindex,
            names=frozenset({self._backend.device_name or "", self._uplink.name}),
        )
        desired = overlay.forwarding.desired if overlay is not None else {}
        if is_relevant(change, watched, desired):
            self._inbox.put(KernelChanged())
        elif not self._routes_pending and self._may_move_a_node(change):
            self._routes_pending = True
            self._inbox.put(RoutesChanged())
        if self._fast_path is not None and not self._ports_pending and _may_be_a_pod(change):
            self._ports_pending = True
            self._inbox.put(PortsChanged())

    def _may_move_a_node(self, change: KernelChange) -> bool:
        """Return whether nodes may now be reached another way; routes to pods do not count."""
        return (
            change.kind is ChangeKind.OBJECT
            and isinstance(change.obj, StrayRoute)
            and not change.obj.subnet.subnet_of(self._config.network)
        )

    def _look_at_routes(self, now: float) -> None:
        """Look at everything anew if the uplink or the way to any node is another one now.

        And after trouble: what was missing may have come with a route.
        """
        self._routes_pending = False
        try:
            moved = find_uplink(self._options) != self._uplink or self._underlay.has_changed()
        except (UplinkError, KernelError) as error:
            self._postpone_repair(error)
        else:
            if moved:
                logger.info("routes to nodes changed")
            if moved or self._status.kernel_trouble:
                self._schedule.by(Task.REPAIR, now)

    def _repair(self, now: float) -> None:
        """Look at the uplink, the device and every object, and put right what differs."""
        trouble = self._follow_uplink()
        try:
            self._local.check_device(self._uplink)
            self._keeper.publish(self._claim())
            self._repair_fast_path()
            if self._overlay is not None:
                self._overlay.forwarding.move(self._home(self._overlay.lease))
                self._count_repairs(self._overlay.peers.audit(now))
                self._schedule_retry(self._overlay)
                if self._overlay.peers.has_snapshot:
                    self._become_ready()
        except KernelError as error:
            trouble = error
        if trouble is not None:
            self._postpone_repair(trouble)
            return
        if self._status.kernel_trouble:
            logger.info("kernel state is in order again")
        self._status.kernel_trouble = ""
        self._local.check_hazards()
        self._schedule.by(Task.REPAIR, now + self._options.audit_interval)

    def _repair_fast_path(self) -> None:
        """Follow the uplink and a device that was made again, and attach what was detached."""
        if self._fast_path is None or self._overlay is None:
            return
        self._fast_path.settle(subnet=self._overlay.lease.lease.subnet, uplink=self._uplink)
        self._fast_path.tidy()
        if self._is_attached:
            self._attach(self._fast_path)

    def _follow_uplink(self) -> KerseyError | None:
        """Choose the uplink anew; where there is none, keep the last one and return why."""
        try:
            found = find_uplink(self._options)
        except (UplinkError, KernelError) as error:
            return error
        if found != self._uplink:
            logger.warning(
                "uplink changed",
                extra={
                    "interface": found.name,
                    "address": str(found.address),
                    "public_ip": str(found.public_ip),
                    "mtu": found.mtu,
                    "reason": found.reason,
                },
            )
            self._uplink = self._status.uplink = found
        return None

    def _postpone_repair(self, error: KerseyError) -> None:
        self._status.netlink_errors += 1
        if str(error) != self._status.kernel_trouble:
            self._status.kernel_trouble = str(error)
            logger.error("kernel state cannot be put right yet", extra={"reason": str(error)})
        self._schedule.by(Task.REPAIR, time.monotonic() + REPAIR_RETRY)

    def _count_repairs(self, result: AuditResult) -> None:
        if not result.repairs:
            return
        done: Counter[str] = Counter()
        for part in (result.added, result.replaced, result.removed):
            done.update(part)
        self._status.repairs = self._status.repairs + done
        logger.warning("kernel state repaired", extra={"objects": dict(done)})

    # The network config

    def _take_config(self, text: bytes) -> None:
        """Follow what of a new config can be followed live; report the rest, keep the last good."""
        try:
            new = parse_network_config(text, self._given)
        except InvalidInputError as error:
            logger.error(  # noqa: TRY400  # the operator's mistake, told in words
                "new network config refused, the last good one stays", extra={"reason": str(error)}
            )
            self._status.config_trouble = str(error)
            return
        change = compare(self._config, new)
        self._status.config_trouble = _unfollowed(change.restart)
        if change.live:
            self._config = apply_live(self._config, new)
            self._backend.configure(self._config.backend)
            self._keeper.configure(self._config)
            logger.info("network config followed", extra={"fields": list(change.live)})
            self._schedule.by(Task.REPAIR, time.monotonic())
        if change.restart:
            logger.warning(
                "network config changed where only a restart can follow",
                extra={"fields": list(change.restart)},
            )

    def _config_texts(self, stop: threading.Event) -> Iterable[Message]:
        return (ConfigText(text) for text in self._store.watch_config(stop))


class Pump:
    """Put what a blocking source yields into the inbox, on a thread of its own."""

    def __init__(
        self, name: str, source: Callable[[threading.Event], Iterable[Message]], inbox: Inbox
    ) -> None:
        self._source = source
        self._inbox = inbox
        self._closed = threading.Event()
        self._run_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._run_over.set()
        self._thread.join(JOIN_TIMEOUT)

    def start_over(self) -> None:
        """End what the source is at and, after a pause, begin anew: leases come as a snapshot."""
        self._run_over.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                for message in self._source(self._run_over):
                    self._inbox.put(message)
            except Exception:
                # A defect in a source must not end the daemon: start it over, from a snapshot.
                logger.exception("watch failed, starting it over")
            self._closed.wait(PUMP_RESTART)
            self._run_over.clear()


def _unfollowed(fields: Sequence[str]) -> str:
    """Return in words which fields of a config wait for a restart, empty if none does."""
    return f"changed, but followed at a restart only: {', '.join(fields)}" if fields else ""


def _may_be_a_pod(change: KernelChange) -> bool:
    """Return whether the change may be a pod's coming or going; routes of peers are not."""
    if change.kind is ChangeKind.OBJECT:
        return isinstance(change.obj, StrayRoute) and change.obj.subnet.prefixlen == HOST_ROUTE
    return True
