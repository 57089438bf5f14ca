"""The lease store in the Kubernetes API, as flannel's `--kube-subnet-mgr` keeps it.

A node's subnet is its podCIDR, which Kubernetes gives and never takes away: nothing is chosen here
and nothing expires. What peers must know stands in annotations of the node. It promises to write
nothing but those annotations and the NetworkUnavailable condition of our own node, both through
`nodes/status`, and only where they differ, and events about it; that one node which cannot be read
harms no other; and that the network config, a file, is read without asking the API server.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

from kersey_control.backoff import Backoff
from kersey_control.errors import (
    InvalidInputError,
    StoreConflictError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from kersey_control.events import Lost, Restored, StoreEvent
from kersey_control.netconfig import NetworkConfig
from kersey_control.notice import Notice
from kersey_control.subnets.base import Claim, Inventory, OwnLease, Remembered, StoredLease
from kersey_control.subnets.kube_access import find_access
from kersey_control.subnets.kube_events import EventWriter
from kersey_control.subnets.kube_http import KubeClient, Request
from kersey_control.subnets.kube_node import (
    Change,
    OwnNode,
    available_patch,
    claim_patch,
    decode_own,
    decode_pod_node,
    parse_address,
)
from kersey_control.subnets.kube_options import KubeOptions
from kersey_control.subnets.kube_table import NodeTable, Own
from kersey_control.subnets.kube_watch import (
    Followed,
    Listing,
    Outage,
    Recovered,
    follow,
    list_nodes,
)

__all__ = ["KubeOptions", "KubeStore", "Remembered"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

CONFIG_INTERVAL = 5.0
"""Seconds between two looks at the config file; a ConfigMap takes a minute to get there anyway."""

PATCH_ATTEMPTS = 5
CONFLICT_PAUSE = 0.1
CONDITION_RETRY = (1.0, 60.0)


class KubeStore:
    """Leases in the Kubernetes API. A context manager; methods may be called from any thread.

    Raises InvalidInputError when it is made with options that lead to no API server.
    """

    def __init__(self, options: KubeOptions) -> None:
        self._options = options
        self._client = KubeClient(find_access(options))
        self._events = EventWriter(self._client, self._node_name)
        self._name = options.node if isinstance(options.node, str) else ""
        self._own: Own | None = None
        self._last_config: bytes | None = None
        self._is_announced = False

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

    def list_leases(self) -> Inventory:
        """Return the leases of all nodes. Raises StoreError."""
        nodes = list_nodes(self._client, self._options.keys).nodes
        found = NodeTable(lambda: None).replace(nodes)
        return Inventory(tuple(StoredLease(lease, None) for lease in found.leases), found.skipped)

    def read_config(self) -> bytes:
        """Return the network config's JSON text. Raises InvalidInputError naming the file."""
        path = self._options.net_config_path
        try:
            self._last_config = path.read_bytes()
        except OSError as error:
            raise InvalidInputError(
                field="--net-config-path",
                value=str(path),
                expected=f"a network config file ({os.strerror(error.errno or 0)})",
            ) from None
        return self._last_config

    def watch_config(self, stop: threading.Event) -> Iterator[bytes]:
        """Yield the config's text whenever it differs from the last one read or yielded.

        A file that is missing or cannot be read counts as unchanged. It is looked at every
        `CONFIG_INTERVAL` seconds: a mounted ConfigMap changes by a swap of links.
        """
        while not stop.is_set() and not self._client.is_closed:
            before = self._last_config
            with suppress(InvalidInputError):
                text = self.read_config()
                if text != before:
                    yield text
            self._client.pause(CONFIG_INTERVAL, stop)

    def remembered(self) -> Remembered:
        """Return what our node object says, to be read before the overlay device is made.

        Raises StoreError, or InvalidInputError while the node has no podCIDR, or for a
        node-public-ip that is no IPv4 address.
        """
        own = self._read_own()
        node, public_ip = own.node, own.node_public_ip
        field = f"node {node.name}: {self._options.keys.node_public_ip}"
        data = node.backend_data or ""
        return Remembered(
            backend_type=node.backend_type or "",
            backend_data=b"" if data == "null" else data.encode(),
            subnet=_own_subnet(own),
            node_public_ip=parse_address(public_ip, field) if public_ip else None,
        )

    def acquire(self, claim: Claim, config: NetworkConfig) -> OwnLease:
        """Take our node's podCIDR for our subnet and annotate the node with our claim.

        Raises StoreError, or InvalidInputError while the node has no podCIDR inside of Network, or
        while its public-ip-overwrite is no IPv4 address.
        """
        own = self._read_own()
        subnet = _own_subnet(own)
        if not subnet.subnet_of(config.network):
            raise InvalidInputError(
                field=f"node {own.node.name}: podCIDR",
                value=str(subnet),
                expected=f"a subnet of Network {config.network}",
            )
        return self._publish(claim, own)

    def renew(self, own: OwnLease, claim: Claim) -> OwnLease:
        """Write the claim's present data; there is nothing to extend.

        Raises StoreConflictError when our node has another podCIDR than we knew; otherwise as
        `acquire`.
        """
        found = self._read_own()
        if _own_subnet(found) != own.lease.subnet:
            raise StoreConflictError(
                f"kubernetes: node {found.node.name} was given another podCIDR, "
                f"{found.node.pod_cidrs}, in place of {own.lease.subnet}"
            )
        return self._publish(claim, found)

    def watch(self, stop: threading.Event) -> Iterator[StoreEvent]:
        """Yield a Snapshot, then events, until `stop` is set or the store is closed.

        After an outage it goes on without a gap, or with a new Snapshot when the server no longer
        knows the changes between. Never raises for an outage.
        """
        table = NodeTable(lambda: self._own)
        for item in follow(self._client, self._options.keys, stop):
            yield from _events(table, item)

    def announce_network(self) -> None:
        """Set our node's NetworkUnavailable condition to False, on a thread of its own.

        Tried until it is done or the store is closed, and again when the node object was made
        anew. Does nothing where `--set-node-network-unavailable=false`.
        """
        if self._options.clears_network_unavailable:
            self._is_announced = True
            threading.Thread(
                target=self._clear_condition, name="node-condition", daemon=True
            ).start()

    def tell(self, notice: Notice) -> None:
        """Have the notice written as an event of our node, or lost. Returns at once."""
        self._events.tell(notice)

    def _publish(self, claim: Claim, own: OwnNode) -> OwnLease:
        """Bring our node's annotations to our claim, and take what the server made of them."""
        written = self._written(claim, own)
        lease = written.node.lease()
        if lease is None:
            raise StoreRefusedError(
                f"kubernetes: node {written.node.name} does not keep our annotations"
            )
        self._own = Own(written.node.name, lease.subnet, written.node, written.revision)
        if self._is_announced and written.network_unavailable != "False":
            self.announce_network()
        return OwnLease(lease=lease, expires_at=None, revision=0)

    def _written(self, claim: Claim, own: OwnNode) -> OwnNode:
        for _ in range(PATCH_ATTEMPTS):
            patch = claim_patch(own.node, claim, self._options.keys)
            if not patch:
                return own
            # From here on the watch may show the new text before the answer gets to us.
            self._own = Own(own.node.name, _own_subnet(own))
            try:
                return self._patch_own(patch)
            except StoreConflictError:
                self._client.pause(CONFLICT_PAUSE)
                own = self._read_own()
        raise StoreConflictError(
            f"kubernetes: node {own.node.name} changed under each of {PATCH_ATTEMPTS} patches"
        )

    def _clear_condition(self) -> None:
        backoff = Backoff(initial=CONDITION_RETRY[0], cap=CONDITION_RETRY[1])
        reported: type[Exception] | None = None
        while not self._client.is_closed:
            try:
                if self._read_own().network_unavailable != "False":
                    self._patch_own(available_patch(datetime.now(UTC)))
            except (StoreError, InvalidInputError) as error:
                # By kind: the words differ from try to try.
                if type(error) is not reported and not self._client.is_closed:
                    reported = type(error)
                    logger.warning(
                        "condition NetworkUnavailable not cleared, trying on",
                        extra={"reason": str(error)},
                    )
                self._client.pause(backoff.delay())
            else:
                return

    def _read_own(self) -> OwnNode:
        return self._ask_own(Request("get", "nodes", self._own_path()))

    def _patch_own(self, patch: bytes) -> OwnNode:
        # The status sub-resource takes annotations too, and is all that flannel's role may patch.
        return self._ask_own(Request("patch", "nodes/status", f"{self._own_path()}/status", patch))

    def _ask_own(self, request: Request) -> OwnNode:
        return self._ask(request, lambda body: decode_own(body, self._options.keys))

    def _ask(self, request: Request, decode: Callable[[bytes], _T]) -> _T:
        """Return what the answer says; one that is not of the API's form is an outage."""
        body = self._client.ask(request)
        try:
            return decode(body)
        except InvalidInputError as error:
            raise StoreUnavailableError(f"kubernetes: {request}: {error}") from None

    def _own_path(self) -> str:
        return f"/api/v1/nodes/{quote(self._node_name(), safe='')}"

    def _node_name(self) -> str:
        if not self._name:
            self._name = self._ask_node_name()
        return self._name

    def _ask_node_name(self) -> str:
        """Return the name of the node that our pod runs on."""
        node = self._options.node
        if isinstance(node, str):
            return node
        namespace, pod = quote(node.namespace, safe=""), quote(node.name, safe="")
        target = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        name = self._ask(Request("get", "pods", target), decode_pod_node)
        if not name:
            raise StoreUnavailableError(
                f"kubernetes: pod {node.namespace}/{node.name} has no node yet"
            )
        return name


def _own_subnet(own: OwnNode) -> IPv4Network:
    subnet = own.node.subnet()
    if subnet is None:
        raise InvalidInputError(
            field=f"node {own.node.name}: podCIDR",
            value=", ".join(own.node.pod_cidrs),
            expected="an IPv4 subnet; kube-controller-manager gives one to each node where it runs"
            " with --allocate-node-cidrs and --cluster-cidr",
        )
    return subnet


def _events(table: NodeTable, item: Followed) -> Iterable[StoreEvent]:
    match item:
        case Listing(nodes):
            return [table.replace(nodes)]
        case Change(node, is_gone=True):
            return table.remove(node.name)
        case Change(node, revision=revision):
            return table.put(node, revision)
        case Outage(reason):
            return [Lost(reason)]
        case Recovered():
            return [Restored()]
