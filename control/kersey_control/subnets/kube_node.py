"""Node objects as leases: what of a node matters, the lease it amounts to, and the patches we send.

Pure: bytes in, values out. A node without flannel's mark, pod network or address is no lease and no
fault; one whose text cannot be read is refused by itself. An answer that lacks what the API always
sends, such as another object or `{}` from a proxy between, is refused as a whole: it says nothing
of the nodes, not that there are none. What a node says about IPv6 is not read and never written, so
that it stays as it is.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Annotated, Literal, TypeAlias

import msgspec

from kersey_control.errors import InvalidInputError
from kersey_control.lease import Lease
from kersey_control.subnets.base import Claim
from kersey_control.subnets.kube_options import AnnotationKeys

NO_DATA = "null"
"""What stands in the backend-data annotation of a backend that has none."""

NETWORK_UNAVAILABLE = "NetworkUnavailable"

_NAMELESS = "(a node without a name)"
_INCOMPLETE = "its metadata lacks name or resourceVersion"


class Node(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What of a node its lease depends on; two equal ones are the same lease.

    A text is None where the node has no such annotation.
    """

    name: str
    pod_cidrs: tuple[str, ...] = ()
    is_managed: bool = False
    public_ip: str | None = None
    backend_type: str | None = None
    backend_data: str | None = None
    public_ip_overwrite: str | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether the node says everything that a lease needs, right or wrong."""
        return self.is_managed and bool(self.pod_cidrs) and bool(self.public_ip)

    def lease(self) -> Lease | None:
        """Return the lease; None where the node is incomplete or has no IPv4 network.

        Raises InvalidInputError naming the field that cannot be read.
        """
        subnet = self.subnet() if self.is_complete else None
        if subnet is None:
            return None
        return Lease(
            subnet=subnet,
            public_ip=parse_address(self.public_ip or "", f"node {self.name}: public-ip"),
            backend_type=self.backend_type or "",
            backend_data=self._data(),
            node_id=self.name,
        )

    def subnet(self) -> IPv4Network | None:
        """Return the node's IPv4 pod network, None if it has none. Raises InvalidInputError."""
        for text in self.pod_cidrs:
            network = self._network(text)
            if network is not None:
                return network
        return None

    def _network(self, text: str) -> IPv4Network | None:
        try:
            network = ip_network(text, strict=False)  # Go masks host bits off
            if not isinstance(network, IPv4Network):
                return None
            if not 1 <= network.prefixlen <= 31:  # noqa: PLR2004  # as in an etcd key
                raise ValueError  # noqa: TRY301  # one message for every way to be wrong
        except ValueError:
            raise InvalidInputError(
                field=f"node {self.name}: podCIDR",
                value=text,
                expected="a network of length 1 to 31, such as 10.244.1.0/24",
            ) from None
        return network

    def _data(self) -> bytes:
        text = self.backend_data or NO_DATA
        try:
            msgspec.json.decode(text, type=msgspec.Raw)
        except _FAULTS as error:
            raise InvalidInputError(
                field=f"node {self.name}: backend-data",
                value=text[:200],
                expected=f"JSON ({error})",
            ) from None
        return b"" if text == NO_DATA else text.encode()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A node object that is not of the form that the API promises."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list: nodes with the time of their creation (RFC 3339), and how to go on."""

    nodes: tuple[tuple[str, Node], ...]
    unreadable: tuple[Unreadable, ...]
    revision: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Change:
    """A node as it is now or, if `is_gone`, as it was last; `revision` is empty if unreadable."""

    node: Node | Unreadable
    is_gone: bool
    revision: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything up to this revision has been said."""

    revision: str


@dataclass(frozen=True, slots=True)
class StreamError:
    """The server ends the watch: an HTTP status and its words."""

    code: int
    message: str


WatchEvent: TypeAlias = Change | Bookmark | StreamError


@dataclass(frozen=True, slots=True)
class OwnNode:
    """Our own node: what its lease depends on, and what administrators and the API say about it.

    The texts are empty where there is none; `network_unavailable` is the condition's status:
    `True`, `False` or `Unknown`.
    """

    node: Node
    revision: str
    node_public_ip: str
    network_unavailable: str


# The wire, as far as we read it


class _Metadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    name: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    annotations: dict[str, str] | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether this says what every object has that the API server keeps."""
        return bool(self.name and self.resource_version)


class _ListMetadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    resource_version: Annotated[str, msgspec.Meta(min_length=1)]
    continuation: str = msgspec.field(name="continue", default="")


class _Spec(msgspec.Struct, frozen=True, gc=False):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(name="podCIDRs", default=None)


class _Object(msgspec.Struct, frozen=True, gc=False):
    """A Node or a Status: the two kinds that a watch of nodes yields."""

    metadata: _Metadata = _Metadata()
    spec: _Spec = _Spec()
    code: int = 0
    message: str = ""


class _List(msgspec.Struct):
    kind: Literal["NodeList"]
    items: list[_Object] | None
    metadata: _ListMetadata


class _RawList(msgspec.Struct):
    kind: Literal["NodeList"]
    items: list[msgspec.Raw] | None
    metadata: _ListMetadata


class _Event(msgspec.Struct, gc=False):
    type: str
    object: _Object


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _NameOnly(msgspec.Struct, frozen=True):
    name: str = ""


class _NamedObject(msgspec.Struct):
    metadata: _NameOnly = _NameOnly()


class _Condition(msgspec.Struct):
    type: str
    status: str


class _NodeStatus(msgspec.Struct, frozen=True):
    conditions: tuple[_Condition, ...] | None = None


class _WholeNode(msgspec.Struct):
    kind: Literal["Node"]
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _NodeStatus = _NodeStatus()


class _PodSpec(msgspec.Struct, frozen=True):
    node_name: str = msgspec.field(name="nodeName", default="")


class _Pod(msgspec.Struct):
    kind: Literal["Pod"]
    spec: _PodSpec = _PodSpec()


_FAULTS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_list = msgspec.json.Decoder(_List).decode
_decode_raw_list = msgspec.json.Decoder(_RawList).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_raw_event = msgspec.json.Decoder(_RawEvent).decode
_decode_object = msgspec.json.Decoder(_Object).decode
_decode_named = msgspec.json.Decoder(_NamedObject).decode
_decode_whole = msgspec.json.Decoder(_WholeNode).decode
_decode_pod = msgspec.json.Decoder(_Pod).decode
_encode = msgspec.json.Encoder().encode


def decode_page(body: bytes, keys: AnnotationKeys) -> Page:
    """Return one page of a list. Raises InvalidInputError if it is no list of nodes."""
    try:
        page = _decode_list(body)
        return _page(page.metadata, page.items or (), keys)
    except _FAULTS:  # some node is not what it should be: look at each by itself
        pass
    try:
        raw = _decode_raw_list(body)
    except _FAULTS as error:
        raise _no_answer("a list of nodes", body, error) from None
    return _page(raw.metadata, [_object(each) for each in raw.items or ()], keys)


def decode_event(line: bytes, keys: AnnotationKeys) -> WatchEvent:
    """Return what one line of a watch says.

    Raises InvalidInputError if it is no watch event, or does not say of which node it is.
    """
    try:
        event = _decode_event(line)
    except _FAULTS:
        return _raw_event(line, keys)
    return _said(event.type, event.object, line, keys)


def decode_own(body: bytes, keys: AnnotationKeys) -> OwnNode:
    """Return our own node from its object. Raises InvalidInputError."""
    try:
        whole = _decode_whole(body)
    except _FAULTS as error:
        raise _no_answer("a node", body, error) from None
    if not whole.metadata.is_whole:
        raise _no_answer("a node", body, _INCOMPLETE)
    annotations = whole.metadata.annotations or {}
    return OwnNode(
        node=_node(_Object(whole.metadata, whole.spec), keys),
        revision=whole.metadata.resource_version,
        node_public_ip=annotations.get(keys.node_public_ip, ""),
        network_unavailable=next(
            (
                condition.status
                for condition in whole.status.conditions or ()
                if condition.type == NETWORK_UNAVAILABLE
            ),
            "",
        ),
    )


def decode_pod_node(body: bytes) -> str:
    """Return the name of the node that a pod runs on, empty if none yet. InvalidInputError."""
    try:
        return _decode_pod(body).spec.node_name
    except _FAULTS as error:
        raise _no_answer("a pod", body, error) from None


def claim_patch(node: Node, claim: Claim, keys: AnnotationKeys) -> bytes:
    """Return the patch that makes the node say what we claim, empty if it says so already.

    Names only what differs, in the order of the names, as flannel's does. Raises InvalidInputError
    for an overwrite that is no IPv4 address.
    """
    public_ip = str(claim.public_ip)
    if node.public_ip_overwrite:
        field = f"node {node.name}: {keys.public_ip_overwrite}"
        public_ip = str(parse_address(node.public_ip_overwrite, field))
    wanted: dict[str, tuple[str | None, str]] = {
        keys.backend_data: (node.backend_data, claim.backend_data.decode() or NO_DATA),
        keys.backend_type: (node.backend_type, claim.backend_type),
        keys.managed: ("true" if node.is_managed else None, "true"),
        keys.public_ip: (node.public_ip, public_ip),
    }
    changed = {key: new for key, (old, new) in wanted.items() if old != new}
    return _encode({"metadata": {"annotations": changed}}) if changed else b""


def available_patch(now: datetime) -> bytes:
    """Return the patch that sets NetworkUnavailable to False as of `now` (aware, UTC)."""
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": "FlannelIsUp",  # what existing alerts and scripts look for
        "message": "The pod network of this node is set up",
        "lastTransitionTime": stamp,
        "lastHeartbeatTime": stamp,
    }
    return _encode({"status": {"conditions": [condition]}})


def parse_address(text: str, field: str) -> IPv4Address:
    """Return `text` as an address. Raises InvalidInputError naming `field`."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise InvalidInputError(field=field, value=text, expected="an IPv4 address") from None


def _page(
    metadata: _ListMetadata, found: Iterable[_Object | Unreadable], keys: AnnotationKeys
) -> Page:
    items = [_named(each) for each in found]
    return Page(
        nodes=tuple(_dated(items, keys)),
        unreadable=tuple(item for item in items if isinstance(item, Unreadable)),
        revision=metadata.resource_version,
        continuation=metadata.continuation,
    )


def _named(found: _Object | Unreadable) -> _Object | Unreadable:
    if isinstance(found, Unreadable) or found.metadata.is_whole:
        return found
    return Unreadable(found.metadata.name or _NAMELESS, f"a node ({_INCOMPLETE})")


def _dated(
    found: Iterable[_Object | Unreadable], keys: AnnotationKeys
) -> Iterator[tuple[str, Node]]:
    for item in found:
        if isinstance(item, _Object):
            yield item.metadata.creation_timestamp or "", _node(item, keys)


def _raw_event(line: bytes, keys: AnnotationKeys) -> WatchEvent:
    """Return what a line says whose object cannot be read. Raises InvalidInputError."""
    try:
        event = _decode_raw_event(line)
    except _FAULTS as error:
        raise _no_answer("a watch event", line, error) from None
    return _said(event.type, _object(event.object), line, keys)


def _said(kind: str, found: _Object | Unreadable, line: bytes, keys: AnnotationKeys) -> WatchEvent:
    """Return what an event says. Raises InvalidInputError."""
    match kind, found:
        case "BOOKMARK", _Object():
            return Bookmark(found.metadata.resource_version)
        case "ERROR", _Object():
            return StreamError(found.code, found.message)
        case "ADDED" | "MODIFIED" | "DELETED", _Object() if found.metadata.is_whole:
            return Change(_node(found, keys), kind == "DELETED", found.metadata.resource_version)
        case "ADDED" | "MODIFIED" | "DELETED", Unreadable() if found.name != _NAMELESS:
            return Change(found, kind == "DELETED", revision="")
        case _:
            raise _no_answer("a watch event", line, f"{_INCOMPLETE}, or it has no such type")


def _node(found: _Object, keys: AnnotationKeys) -> Node:
    annotations, spec = found.metadata.annotations or {}, found.spec
    kind = annotations.get(keys.backend_type)
    return Node(
        name=found.metadata.name,
        pod_cidrs=spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ()),
        is_managed=annotations.get(keys.managed) == "true",
        public_ip=annotations.get(keys.public_ip),
        backend_type=None if kind is None else sys.intern(kind),  # thousands of nodes say the same
        backend_data=annotations.get(keys.backend_data),
        public_ip_overwrite=annotations.get(keys.public_ip_overwrite),
    )


def _object(raw: msgspec.Raw) -> _Object | Unreadable:
    try:
        return _decode_object(raw)
    except _FAULTS as error:
        reason = str(error)
    try:
        name = _decode_named(raw).metadata.name
    except _FAULTS:
        name = ""
    return Unreadable(name or _NAMELESS, f"a node ({reason})")


def _no_answer(what: str, body: bytes, reason: object) -> InvalidInputError:
    return InvalidInputError(
        field="kubernetes answer", value=body[:100], expected=f"{what} ({reason})"
    )
