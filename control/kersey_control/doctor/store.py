"""The lease store as seen from here, our lease in it, and the clock that both are told by."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kersey_control.doctor.finding import Finding, error, note, warning
from kersey_control.errors import InvalidInputError, StoreError
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.node_view import NodeView
from kersey_control.subnets.base import StoredLease
from kersey_control.subnets.etcd import EtcdOptions, EtcdStore
from kersey_control.told import ToldStatus

_JUMP = 120.0
_DEFAULTS = EtcdOptions()


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store holds: the config, and our lease, None if there is none."""

    config: NetworkConfig
    lease: StoredLease | None


def check(options: EtcdOptions, view: NodeView) -> Iterator[Finding]:
    """Ask the etcd that flags name, else the one that the daemon uses; of another store, it."""
    if view.told is not None and view.told.options.store != "etcd":
        yield from judge_told(view.told)
        return
    chosen = _chosen(options, view)
    where = ", ".join(chosen.endpoints)
    try:
        stored = _read(chosen, view)
    except StoreError as failure:
        yield judge_silence(str(failure), where, knows=_connected(view))
    except InvalidInputError as failure:
        yield error(
            f"the network config in {where} cannot be used: {failure}",
            "no kerseyd can start with it; those that run keep the last good one",
            f"etcdctl put {chosen.prefix}/config with a text that kersey config check accepts",
        )
    else:
        yield from judge_config(stored.config, view, where)
        if view.told is not None and view.told.subnet:
            margin = view.told.options.renew_margin
            ends = stored.lease.expires_at if stored.lease else None
            yield from judge_lease(view.told.subnet, held=stored.lease is not None)
            yield from judge_clock(
                told=view.told.lease.expires_at, stored=ends, now=time.time(), margin=margin
            )


def judge_told(told: ToldStatus) -> Iterator[Finding]:
    """Say what the daemon itself says of its store."""
    if not told.store.connected:
        yield error(
            f"the lease store ({told.options.store}) does not answer: {told.store.trouble}",
            "forwarding goes on with what is known, but new nodes stay unknown",
            "look whether the API server can be reached from this node, and into kerseyd's log",
        )


def judge_silence(failure: str, where: str, *, knows: bool) -> Finding:
    """Say that the store does not answer us; `knows` that it answers the daemon."""
    if knows:
        return note(
            f"the lease store {where} does not answer this command: {failure}",
            "kerseyd itself is connected, perhaps with a certificate or a password",
            "give kersey doctor the --etcd-* flags of kerseyd",
        )
    return error(
        f"the lease store {where} does not answer: {failure}",
        "forwarding goes on with what is known, but new nodes stay unknown and our lease ends"
        " within a day",
        f"etcdctl --endpoints={where.replace(' ', '')} endpoint health",
    )


def judge_config(config: NetworkConfig, view: NodeView, where: str) -> Iterator[Finding]:
    """Say whether the daemon works by another network than the store has now."""
    told = view.told
    if told is not None and told.network and told.network != str(config.network):
        yield warning(
            f"the config in {where} says network {config.network}, kerseyd works with"
            f" {told.network}",
            "this node and those that start now do not reach each other's pods",
            "restart kerseyd on every node",
        )


def judge_lease(subnet: str, *, held: bool) -> Iterator[Finding]:
    """Say whether our lease is in the store."""
    if not held:
        yield error(
            f"the store has no lease for {subnet}, which kerseyd holds",
            "other nodes forget the way to our pods",
            "kerseyd claims it again by itself; restart it if it does not",
        )


def judge_clock(
    *, told: float | None, stored: float | None, now: float, margin: float
) -> Iterator[Finding]:
    """Say whether wall clock and lease agree; times in seconds since the epoch.

    `told` is the end that the daemon expects, not later than by the clock at the last renewal;
    `stored` is what the store says is left, by the clock of now.
    """
    if told is None or stored is None:
        return
    if stored - told > _JUMP:
        yield warning(
            f"the clock of this node jumped forward by {stored - told:.0f} s since the lease was"
            " renewed",
            "kerseyd renews sooner than it must, and certificates may seem to have ended",
            "keep the clock by NTP (timedatectl set-ntp true)",
        )
    if told - stored > _JUMP:
        yield warning(
            f"our lease ends {told - stored:.0f} s before kerseyd expects it",
            "it may be renewed too late: other nodes forget the way to our pods when it ends",
            "restart kerseyd, which renews it at once",
        )
    if stored - now < margin / 2:
        yield error(
            f"our lease ends in {max(0.0, stored - now):.0f} s and was not renewed",
            "other nodes forget the way to our pods when it ends",
            "look into kerseyd's log for what keeps it from renewing, or restart it",
        )


def _chosen(options: EtcdOptions, view: NodeView) -> EtcdOptions:
    told = view.told.options if view.told else None
    if told is None or not told.etcd_endpoints or options.endpoints != _DEFAULTS.endpoints:
        return options
    return replace(options, endpoints=told.etcd_endpoints, prefix=told.etcd_prefix)


def _read(options: EtcdOptions, view: NodeView) -> Stored:
    with EtcdStore(options) as store:
        config = parse_network_config(store.read_config())
        return Stored(config, store.find_lease(view.subnet) if view.subnet else None)


def _connected(view: NodeView) -> bool:
    return view.told is not None and view.told.store.connected
