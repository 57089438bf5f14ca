"""The lease store on etcd v3, in flannel's layout: `<prefix>/config` and `<prefix>/subnets/<key>`.

It promises that every change of a record is a compare-and-swap, that a record without an etcd
lease (a reservation) is never given one, that no etcd lease is left behind by a renewal or by a
write that is refused, and that one record which cannot be read harms no other. It never deletes a
record of another node.
"""

import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

from kersey_control.allocate import Adopt, Create, Discard, decide, refuse_duplicate
from kersey_control.clocks import Moment
from kersey_control.errors import (
    DuplicateNodeError,
    InvalidInputError,
    StoreAuthError,
    StoreConflictError,
    StoreRefusedError,
)
from kersey_control.events import (
    Changed,
    Lost,
    Removed,
    Restored,
    Skipped,
    Snapshot,
    StoreEvent,
)
from kersey_control.lease import (
    Lease,
    decode_lease,
    encode_lease,
    parse_subnet_key,
    subnet_key,
)
from kersey_control.netconfig import NetworkConfig
from kersey_control.notice import Notice
from kersey_control.subnets.base import Claim, Inventory, OwnLease, Remembered, StoredLease
from kersey_control.subnets.etcd_client import EtcdClient, Listing, Record, Span, Update
from kersey_control.subnets.etcd_options import EtcdOptions, key_prefix
from kersey_control.subnets.etcd_watch import Followed, Outage, Recovered, follow

__all__ = ["EtcdOptions", "EtcdStore"]

LEASE_SECONDS = 24 * 60 * 60  # flannel's
ACQUIRE_ATTEMPTS = 30
ACQUIRE_PAUSE = 0.1


class EtcdStore:
    """Leases in etcd. A context manager; methods may be called from several threads at once."""

    def __init__(self, options: EtcdOptions) -> None:
        self._client = EtcdClient(options)
        prefix = key_prefix(options)
        self._config_key = f"{prefix}/config"
        self._subnets = Span(f"{prefix}/subnets/", is_prefix=True)
        self._last_config: bytes | None = None
        self._rng = random.SystemRandom()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and watches in progress; twice does no harm."""
        self._client.close()

    def read_config(self) -> bytes:
        """Return the network config's JSON text.

        Raises StoreError, or InvalidInputError naming the key when it does not exist.
        """
        record = self._client.get(self._config_key)
        if record is None:
            raise InvalidInputError(
                field="etcd key", value=self._config_key, expected="a network config stored there"
            )
        self._last_config = record.value
        return record.value

    def watch_config(self, stop: threading.Event) -> Iterator[bytes]:
        """Yield the config's text whenever it differs from the last one read or yielded.

        A change between `read_config` and this call is not missed. Silent about outages and about
        a deleted config.
        """
        for item in follow(self._client, Span(self._config_key, is_prefix=False), stop):
            for text in _values(item):
                if text != self._last_config:
                    self._last_config = text
                    yield text

    def remembered(self) -> Remembered:
        """Return nothing: our lease is found by address and node id, when it is claimed."""
        return Remembered()

    def announce_network(self) -> None:
        """Do nothing: nobody asks etcd whether a node is up."""

    def tell(self, notice: Notice) -> None:
        """Do nothing: nobody reads etcd for news. The log and the metrics have them."""

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        """Take, or take back, a subnet for this node, in flannel's order (see allocate).

        Raises StoreError, SubnetsExhaustedError or DuplicateNodeError.
        """
        wished = () if claim.previous is None else (claim.previous,)
        for attempt in range(ACQUIRE_ATTEMPTS):
            listing = self._client.list(self._subnets)
            try:
                own, dropped = self._take(listing, claim, config, wished)
            except StoreConflictError:
                # Starters that collided must not collide again in step.
                pause = self._rng.uniform(0, ACQUIRE_PAUSE * min(attempt + 1, 5))
                self._client.pause(pause)
                continue
            if own is not None:
                return own
            wished = (*wished, *dropped)
        raise StoreConflictError(
            f"etcd: no subnet for {claim.public_ip} in {ACQUIRE_ATTEMPTS} attempts, "
            f"other nodes were first each time"
        )

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        """Extend our lease by 24 h and write the claim's present data, by compare-and-swap.

        A reservation stays one. Raises StoreConflictError when the record is no longer as we knew
        it, other StoreErrors when nothing is known to have changed.
        """
        return self._write(
            _claimed(own.lease, claim),
            revision=own.revision,
            is_reservation=own.expires_at is None,
        )

    def watch(self, stop: threading.Event) -> Iterator[StoreEvent]:
        """Yield a Snapshot, then events, until `stop` is set or the store is closed.

        After an outage it goes on without a gap, or with a new Snapshot when etcd has compacted
        the changes between. Never raises for an outage.
        """
        for item in follow(self._client, self._subnets, stop):
            event = self._event(item)
            if event is not None:
                yield event

    def list_leases(self) -> Inventory:
        """Return all leases with their expiry; asks etcd once for each, so not for hot paths."""
        stored, skipped = [], []
        for record in self._client.list(self._subnets).records:
            lease = self._decode(record)
            if isinstance(lease, Skipped):
                skipped.append(lease)
            else:
                stored.append(StoredLease(lease, self._expiry(record)))
        return Inventory(tuple(stored), tuple(skipped))

    def find_lease(self, subnet: IPv4Network) -> StoredLease | None:
        """Return one lease with its expiry, None if there is none that can be read."""
        record = self._client.get(self._subnets.start + subnet_key(subnet))
        lease = self._decode(record) if record is not None else None
        if record is None or not isinstance(lease, Lease):
            return None
        return StoredLease(lease, self._expiry(record))

    def _take(
        self,
        listing: Listing,
        claim: Claim,
        config: NetworkConfig,
        wished: tuple[IPv4Network, ...],
    ) -> tuple[OwnLease | None, tuple[IPv4Network, ...]]:
        """Make one decision and act on it: our lease, or what we deleted before deciding again."""
        records = dict(self._readable(listing))
        decision = decide(
            tuple(records),
            unreadable=self._unreadable(listing),
            public_ip=claim.public_ip,
            node_id=claim.node_id,
            previous=wished,
            config=config,
            rng=self._rng,
        )
        match decision:
            case Adopt(lease):
                record = records[lease]
                own = self._write(
                    _claimed(lease, claim),
                    revision=record.mod_revision,
                    is_reservation=record.lease_id == 0,
                )
                return own, ()
            case Discard(lease):
                record = records[lease]
                self._client.delete(record.key, mod_revision=record.mod_revision)
                self._client.discard_lease(record.lease_id)
                return None, (lease.subnet,)
            case Create(subnet):
                fresh = _claimed(Lease(subnet=subnet, public_ip=claim.public_ip), claim)
                own = self._write(fresh, revision=0, is_reservation=False)
                self._withdraw_if_duplicate(own, claim)
                return own, ()

    def _write(self, lease: Lease, *, revision: int, is_reservation: bool) -> OwnLease:
        """Put our record where `revision` still holds; 0 means where no record is yet."""
        expires_at = None if is_reservation else Moment.now().after(LEASE_SECONDS)
        etcd_lease = 0 if is_reservation else self._client.grant(LEASE_SECONDS)
        put = (
            partial(self._client.replace, mod_revision=revision)
            if revision
            else self._client.create
        )
        try:
            written = put(self._key(lease), encode_lease(lease), lease_id=etcd_lease)
        except (StoreConflictError, StoreAuthError, StoreRefusedError):
            # Nothing was written. After an outage it may have been, or may still be.
            self._client.discard_lease(etcd_lease)
            raise
        self._client.discard_lease(written.previous_lease_id)
        return OwnLease(lease=lease, expires_at=expires_at, revision=written.revision)

    def _withdraw_if_duplicate(self, own: OwnLease, claim: Claim) -> None:
        """Give a new lease back if another node took one for our address at the same moment.

        Of two such nodes the later writer sees the earlier one's record and withdraws.
        """
        readable = list(self._readable(self._client.list(self._subnets)))
        older = [
            lease
            for lease, record in readable
            if lease.public_ip == claim.public_ip and record.create_revision < own.revision
        ]
        try:
            refuse_duplicate(older, node_id=claim.node_id)
        except DuplicateNodeError:
            self._client.delete(self._key(own.lease), mod_revision=own.revision)
            for _, record in readable:
                if record.mod_revision == own.revision:
                    self._client.discard_lease(record.lease_id)
            raise

    def _event(self, item: Followed) -> StoreEvent | None:
        match item:
            case Listing():
                return self._snapshot(item)
            case Update(record, deleted=True):
                return self._removed(record)
            case Update(record):
                lease = self._decode(record)
                return lease if isinstance(lease, Skipped) else Changed(lease)
            case Outage(reason):
                return Lost(reason)
            case Recovered():
                return Restored()

    def _snapshot(self, listing: Listing) -> Snapshot:
        by_age = sorted(listing.records, key=lambda record: record.mod_revision)
        decoded = [self._decode(record) for record in by_age]
        return Snapshot(
            leases=tuple(item for item in decoded if isinstance(item, Lease)),
            skipped=tuple(item for item in decoded if isinstance(item, Skipped)),
        )

    def _removed(self, record: Record) -> Removed | None:
        """Return the event; None where the key never was a lease's, and nothing is lost."""
        try:
            return Removed(parse_subnet_key(self._name(record))[0])
        except InvalidInputError:
            return None

    def _readable(self, listing: Listing) -> Iterable[tuple[Lease, Record]]:
        for record in listing.records:
            lease = self._decode(record)
            if isinstance(lease, Lease):
                yield lease, record

    def _unreadable(self, listing: Listing) -> Iterator[IPv4Network]:
        """Yield the subnets of keys that are well formed but have a value that is not."""
        for record in listing.records:
            if isinstance(self._decode(record), Skipped):
                with suppress(InvalidInputError):
                    yield parse_subnet_key(self._name(record))[0]

    def _decode(self, record: Record) -> Lease | Skipped:
        name = self._name(record)
        try:
            return decode_lease(name, record.value)
        except InvalidInputError as error:
            return Skipped(record=name, reason=str(error))

    def _expiry(self, record: Record) -> float | None:
        if record.lease_id == 0:
            return None
        return time.time() + self._client.remaining(record.lease_id)

    def _name(self, record: Record) -> str:
        return record.key.removeprefix(self._subnets.start)

    def _key(self, lease: Lease) -> str:
        return self._subnets.start + subnet_key(lease.subnet, lease.subnet_v6)


def _claimed(lease: Lease, claim: Claim) -> Lease:
    """Return `lease` with our present data; what it says about IPv6 stays."""
    return replace(
        lease,
        public_ip=claim.public_ip,
        backend_type=claim.backend_type,
        backend_data=claim.backend_data,
        node_id=claim.node_id,
    )


def _values(item: Followed) -> tuple[bytes, ...]:
    match item:
        case Listing(records):
            return tuple(record.value for record in records)
        case Update(record, deleted=False):
            return (record.value,)
        case _:
            return ()
