"""Node objects, whole and broken, as the API sends them."""

import json
from datetime import UTC, datetime
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kersey_control.errors import InvalidInputError
from kersey_control.subnets.kube_node import (
    Bookmark,
    Change,
    Node,
    OwnNode,
    Page,
    StreamError,
    Unreadable,
    available_patch,
    decode_event,
    decode_own,
    decode_page,
    decode_pod_node,
)
from kersey_control.subnets.kube_options import AnnotationKeys
from kube.members import annotations, cidr, data, make_lease

Json = dict[str, Any]
KEYS = AnnotationKeys.from_prefix("flannel.alpha.coreos.com")


def item(number: int, **changes: Any) -> Json:
    return {
        "kind": "Node",
        "metadata": {
            "name": f"n{number:04}",
            "resourceVersion": "7",
            "creationTimestamp": "2024-01-01T00:00:00Z",
            "annotations": annotations(number),
        },
        "spec": {"podCIDR": cidr(number), "podCIDRs": [cidr(number)], "taints": []},
        "status": {"images": [{"names": ["x"]}], "conditions": []},
        **changes,
    }


def page(*items: object) -> bytes:
    metadata = {"resourceVersion": "9"}
    return json.dumps({"kind": "NodeList", "metadata": metadata, "items": items}).encode()


def event(kind: str, thing: object) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode()


def node(**changes: Any) -> Node:
    ((_, found),) = decode_page(page(item(1, **changes)), KEYS).nodes
    return found


def test_a_node_is_a_lease() -> None:
    assert node().lease() == make_lease(1)


@pytest.mark.parametrize(
    ("spec", "subnet"),
    [
        ({"podCIDR": "10.1.2.0/24"}, "10.1.2.0/24"),
        ({"podCIDR": "10.1.2.0/24", "podCIDRs": None}, "10.1.2.0/24"),
        ({"podCIDR": "", "podCIDRs": ["10.1.2.0/24"]}, "10.1.2.0/24"),
        ({"podCIDR": "fd00::/64", "podCIDRs": ["fd00::/64", "10.1.2.0/24"]}, "10.1.2.0/24"),
        ({"podCIDR": "10.1.2.7/24"}, "10.1.2.0/24"),
        ({"podCIDR": "10.1.2.0/31"}, "10.1.2.0/31"),
        ({"podCIDR": "fd00::/64"}, None),
        ({"podCIDR": ""}, None),
        ({}, None),
    ],
)
def test_the_ipv4_pod_network_is_found(spec: Json, subnet: str | None) -> None:
    lease = node(spec=spec).lease()
    assert (lease and lease.subnet) == (IPv4Network(subnet) if subnet else None)


@pytest.mark.parametrize("text", ["10.1.2.0/32", "0.0.0.0/0", "10.1.2", "010.1.2.0/24", "x", "/24"])
def test_other_pod_networks_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^node n0001: podCIDR: got '{text}', expected"):
        node(spec={"podCIDR": text}).lease()


@pytest.mark.parametrize("text", ["null", "", "{}", '{"VNI":1}', " {}", '"x"'])
def test_data_is_any_json_and_null_is_none(text: str) -> None:
    notes = annotations(1, backend_data=text)
    metadata = {"name": "n", "resourceVersion": "7", "annotations": notes}
    lease = node(metadata=metadata).lease()
    assert lease is not None
    assert lease.backend_data == (b"" if text in ("null", "") else text.encode())


@pytest.mark.parametrize("text", ["{", "nul", "{} {}", "[" * 5000, "\0"])
def test_data_that_is_no_json_is_refused(text: str) -> None:
    notes = annotations(1, backend_data=text)
    metadata = {"name": "n", "resourceVersion": "7", "annotations": notes}
    with pytest.raises(InvalidInputError, match=r"^node n: backend-data: got '.*', expected JSON"):
        node(metadata=metadata).lease()


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "n"},
        {"name": "n", "annotations": None},
        {"name": "n", "annotations": {}},
        {"name": "n", "annotations": annotations(1, kube_subnet_manager="True")},
        {"name": "n", "annotations": annotations(1, public_ip="")},
    ],
    ids=str,
)
def test_incomplete_nodes_are_no_leases(metadata: Json) -> None:
    assert node(metadata={"resourceVersion": "7", **metadata}).lease() is None


def test_an_unreadable_node_does_not_spoil_its_page() -> None:
    broken = [
        item(2, metadata={"name": "n2", "annotations": {"a": 1}}),
        item(3, spec={"podCIDRs": "10.0.0.0/8"}),
        {"metadata": 7},
        "no object",
        None,
        {},
        {"metadata": {"name": "n8"}},
        {"metadata": {"resourceVersion": "7"}},
    ]
    found = decode_page(page(item(1), *broken, item(4)), KEYS)
    assert [each.name for _, each in found.nodes] == ["n0001", "n0004"]
    nameless = "(a node without a name)"
    names = ["n2", "n0003", *[nameless] * 4, "n8", nameless]
    assert [each.name for each in found.unreadable] == names
    assert "`$.metadata.annotations[...]`" in found.unreadable[0].reason
    assert found.unreadable[6].reason == "a node (its metadata lacks name or resourceVersion)"
    assert found.revision == "9"


def changed(body: bytes, **changes: object) -> bytes:
    """Return a JSON object with other fields; None takes one away."""
    merged = {**json.loads(body), **changes}
    return json.dumps({key: value for key, value in merged.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"<html>",
        b'{"status": "ok"}',
        b'{"kind": "Status", "metadata": {}, "status": "Success"}',
        changed(page(), kind=None),
        changed(page(), kind="PodList"),
        changed(page(), items=None),
        changed(page(), items=7),
        changed(page(), metadata=None),
        changed(page(), metadata=[]),
        changed(page(), metadata={}),
        changed(page(), metadata={"resourceVersion": ""}),
    ],
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"^kubernetes answer: .* expected a list of nodes"):
        decode_page(body, KEYS)


def test_an_empty_list_is_one() -> None:
    for items in (b"null", b"[]"):
        body = b'{"kind":"NodeList","items":%b,"metadata":{"resourceVersion":"9"}}' % items
        assert decode_page(body, KEYS) == Page((), (), "9", "")


def test_events_are_told_apart() -> None:
    assert decode_event(event("ADDED", item(1)), KEYS) == Change(node(), False, "7")
    assert decode_event(event("DELETED", item(1)), KEYS) == Change(node(), True, "7")
    mark = {"kind": "Node", "metadata": {"resourceVersion": "12", "creationTimestamp": None}}
    assert decode_event(event("BOOKMARK", mark), KEYS) == Bookmark("12")
    status = {"kind": "Status", "metadata": {}, "status": "Failure", "code": 410, "message": "m"}
    assert decode_event(event("ERROR", status), KEYS) == StreamError(410, "m")
    broken = decode_event(event("MODIFIED", item(1, spec=7)), KEYS)
    assert isinstance(broken, Change)
    assert isinstance(broken.node, Unreadable)
    assert broken.node.name == "n0001"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"7",
        event("ADDED", {}),
        event("DELETED", 7),
        event("DELETED", {"metadata": {"resourceVersion": "7"}}),
        event("MODIFIED", {"metadata": {"name": "n0001"}}),
        event("MODIFIED", {"metadata": {"resourceVersion": "7"}, "spec": 7}),
        event("MODIFIED", {"kind": "Status", "metadata": {}, "code": 200}),
        event("RENAMED", item(1)),
        event("BOOKMARK", 7),
        event("ERROR", 7),
        changed(event("ADDED", item(1)), type=None),
        changed(event("ADDED", item(1)), object=None),
    ],
)
def test_an_event_that_does_not_say_of_which_node_it_is_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"^kubernetes answer: .* expected a watch event"):
        decode_event(body, KEYS)


OWN = json.dumps(item(1)).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"kind": "Status", "metadata": {}}',
        changed(OWN, kind=None),
        changed(OWN, metadata=None),
        changed(OWN, metadata={"name": "n0001"}),
        changed(OWN, metadata={"resourceVersion": "7"}),
    ],
)
def test_what_is_no_node_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"^kubernetes answer: .* expected a node "):
        decode_own(body, KEYS)


def test_what_is_no_pod_is_refused() -> None:
    assert decode_pod_node(b'{"kind": "Pod", "spec": {"nodeName": "n"}}') == "n"
    assert decode_pod_node(b'{"kind": "Pod", "spec": {}}') == ""
    for body in (b"{}", b'{"kind": "Status", "spec": {"nodeName": "n"}}'):
        with pytest.raises(InvalidInputError, match=r"expected a pod"):
            decode_pod_node(body)


def test_our_own_node_says_more() -> None:
    found = item(1, status={"conditions": [{"type": "NetworkUnavailable", "status": "True"}]})
    own = decode_own(json.dumps(found).encode(), KEYS)
    assert own == OwnNode(node(), "7", "", "True")


def test_the_condition_is_flannels() -> None:
    patch = json.loads(available_patch(datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)))
    (condition,) = patch["status"]["conditions"]
    assert condition.pop("message")
    assert condition == {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "FlannelIsUp",
        "lastTransitionTime": "2024-02-03T04:05:06Z",
        "lastHeartbeatTime": "2024-02-03T04:05:06Z",
    }


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(data(1)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "spec", "annotations", "podCIDR", "podCIDRs", "name", "items"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(anything | st.binary(max_size=40), st.sampled_from(["ADDED", "DELETED", "ERROR", "x"]))
def test_whatever_comes_is_a_value_or_a_refusal(thing: object, kind: str) -> None:
    raw = thing if isinstance(thing, bytes) else json.dumps(thing).encode()
    whole = b'{"type":"%b","object":%b}' % (kind.encode(), raw)
    for decode, body in ((decode_event, whole), (decode_page, raw), (decode_own, raw)):
        try:
            found = decode(body, KEYS)
        except InvalidInputError:
            continue
        if isinstance(found, Change) and isinstance(found.node, Node):
            try:
                found.node.lease()
            except InvalidInputError:
                continue
