"""Our own node: what is written to it, when, and what happens when that does not work."""

import json
import logging
import queue
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from etcd.following import Following
from kersey_control.errors import (
    InvalidInputError,
    StoreAuthError,
    StoreConflictError,
    StoreRefusedError,
    StoreUnavailableError,
)
from kersey_control.events import Changed, Removed, Snapshot
from kersey_control.keeper import LeaseHeld, LeaseKeeper, LeaseTrouble
from kersey_control.lease import Lease
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets import kube
from kersey_control.subnets.base import OwnLease
from kersey_control.subnets.kube import KubeOptions, KubeStore, Remembered
from kersey_control.subnets.kube_options import AnnotationKeys, PodName
from kersey_control.table import LeaseTable
from kube.api_server import PATCH_TYPE, PREFIX, ApiServer, Fault
from kube.members import NODE, annotations, cidr, data, join, make_claim, make_lease
from testbed.waiting import wait_until

OWN = make_lease(200, name=NODE)


def notes(api: ApiServer) -> dict[str, str]:
    found: dict[str, str] = api.nodes[NODE]["metadata"]["annotations"]
    return found


def test_first_claim_patches_the_node_as_flannel_does(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    own = store.acquire(make_claim(), config)
    assert own == OwnLease(lease=OWN, expires_at=None, revision=0)
    (patch,) = api.of("patch")
    assert patch.path == f"/api/v1/nodes/{NODE}/status"
    assert patch.content_type == PATCH_TYPE
    assert patch.body == (
        rb'{"metadata":{"annotations":{'
        rb'"flannel.alpha.coreos.com/backend-data":'
        rb'"{\"VNI\":1,\"VtepMAC\":\"0e:2a:00:00:00:c8\"}",'
        rb'"flannel.alpha.coreos.com/backend-type":"vxlan",'
        rb'"flannel.alpha.coreos.com/kube-subnet-manager":"true",'
        rb'"flannel.alpha.coreos.com/public-ip":"198.18.0.200"}}}'
    )
    assert notes(api) == annotations(200)


def test_a_node_without_any_annotation_is_annotated(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.put(NODE, cidr=cidr(200))
    store.acquire(make_claim(), config)
    assert notes(api)[PREFIX + "kube-subnet-manager"] == "true"


def test_claiming_again_writes_nothing_and_a_change_writes_only_itself(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    own = store.acquire(make_claim(), config)
    assert store.acquire(make_claim(), config) == own
    assert len(api.of("patch")) == 1
    moved = store.renew(own, make_claim(public_ip=IPv4Address("198.18.0.9")))
    assert moved.lease == replace(OWN, public_ip=IPv4Address("198.18.0.9"))
    key = PREFIX + "public-ip"
    assert json.loads(api.of("patch")[1].body) == {"metadata": {"annotations": {key: "198.18.0.9"}}}


def test_a_backend_without_data_writes_null(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    own = store.acquire(make_claim(backend_type="host-gw", backend_data=b""), config)
    assert notes(api)[PREFIX + "backend-data"] == "null"
    assert own.lease.backend_data == b""


def test_ipv6_annotations_of_another_time_stay(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.annotate(NODE, public_ipv6="fd00::1", backend_v6_data='{"VNI":1,"VtepMAC":"x"}')
    store.acquire(make_claim(), config)
    assert notes(api)[PREFIX + "public-ipv6"] == "fd00::1"
    assert notes(api)[PREFIX + "backend-v6-data"] == '{"VNI":1,"VtepMAC":"x"}'


def test_keys_follow_the_annotation_prefix(
    api: ApiServer, options: KubeOptions, config: NetworkConfig
) -> None:
    keys = AnnotationKeys.from_prefix("example.org/net")
    with KubeStore(replace(options, keys=keys)) as store:
        store.acquire(make_claim(), config)
        assert store.remembered().backend_data == data(200).encode()
    assert notes(api)["example.org/net-backend-data"] == data(200)


def test_an_overwrite_is_advertised_and_followed_live(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.annotate(NODE, public_ip_overwrite="203.0.113.7")
    own = store.acquire(make_claim(), config)
    assert own.lease.public_ip == IPv4Address("203.0.113.7")
    with Following(store) as following:
        api.annotate(NODE, public_ip_overwrite="203.0.113.8")
        following.wait_for_kind(Removed)
        own = store.acquire(make_claim(), config)
        assert own.lease.public_ip == IPv4Address("203.0.113.8")
        following.wait_for_kind(Changed)
    api.annotate(NODE, public_ip_overwrite="here")
    with pytest.raises(InvalidInputError, match="public-ip-overwrite: got 'here'"):
        store.acquire(make_claim(), config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "podCIDR: got '', expected an IPv4 subnet; kube-controller-manager"),
        ("fd00::/64", "podCIDR: got 'fd00::/64', expected an IPv4 subnet"),
        ("10.245.1.0/24", r"podCIDR: got '10.245.1.0/24', expected a subnet of Network 10.244"),
        ("10.0.0.0/8", r"podCIDR: got '10.0.0.0/8', expected a subnet of Network"),
        ("nonsense", "podCIDR: got 'nonsense', expected a network"),
    ],
)
def test_a_pod_cidr_that_is_none_is_named_and_nothing_written(
    api: ApiServer, store: KubeStore, config: NetworkConfig, *, text: str, message: str
) -> None:
    api.put(NODE, cidr=text, annotations={})
    with pytest.raises(InvalidInputError, match=f"^node {NODE}: {message}"):
        store.acquire(make_claim(), config)
    assert not api.of("patch")


def test_both_families_are_looked_through_for_ipv4(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.put(NODE, cidr="fd00::/64", annotations={}, podCIDRs=["fd00::/64", cidr(200)])
    assert store.acquire(make_claim(), config).lease.subnet == OWN.subnet


def test_the_keeper_waits_for_a_pod_cidr_and_then_holds_the_lease_for_ever(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.delete(NODE)
    reports: list[LeaseHeld | LeaseTrouble] = []
    keeper = LeaseKeeper(
        store=store, config=config, claim=make_claim(), renew_margin=3600, report=reports.append
    )
    with keeper:
        wait_until(lambda: len(reports) == 1, timeout=10, what="the missing node is reported")
        assert "404" in str(reports[0])
        api.put(NODE)
        wait_until(lambda: len(reports) == 2, timeout=10, what="the missing podCIDR is reported")
        api.put(NODE, cidr=cidr(200))
        wait_until(lambda: len(reports) == 3, timeout=10, what="the lease is held")
        assert isinstance(reports[2], LeaseHeld)
        assert reports[2].own.expires_at is None
        keeper.publish(make_claim(backend_data=data(9).encode()))
        wait_until(lambda: len(reports) == 4, timeout=10, what="the new MAC is written")
        assert notes(api)[PREFIX + "backend-data"] == data(9)


def test_conflicts_are_tried_again(api: ApiServer, store: KubeStore, config: NetworkConfig) -> None:
    api.fail("patch", *[Fault(409)] * 3)
    assert store.acquire(make_claim(), config).lease == OWN
    api.annotate(NODE, public_ip="198.18.0.1")
    api.fail("patch", *[Fault(409)] * kube.PATCH_ATTEMPTS)
    with pytest.raises(StoreConflictError, match=f"node {NODE} changed under each of 5 patches"):
        store.acquire(make_claim(), config)


def test_what_changed_at_a_conflict_is_taken_in(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    set_overwrite = lambda: api.annotate(NODE, public_ip_overwrite="203.0.113.7")  # noqa: E731
    api.fail("patch", Fault(409, then=set_overwrite))
    own = store.acquire(make_claim(), config)
    assert own.lease.public_ip == IPv4Address("203.0.113.7")


def test_another_pod_cidr_ends_a_renewal(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    own = store.acquire(make_claim(), config)
    api.delete(NODE)
    api.put(NODE, cidr=cidr(201))
    with pytest.raises(StoreConflictError, match=r"another podCIDR, .*10\.244\.201\.0/24"):
        store.renew(own, make_claim())
    assert store.acquire(make_claim(), config).lease.subnet == IPv4Network(cidr(201))


@pytest.mark.parametrize(
    ("forbidden", "words"),
    [
        (("get", "nodes"), 'get nodes: HTTP 403 Forbidden: User "x" cannot get resource "nodes"'),
        (("patch", "nodes/status"), "patch nodes/status: HTTP 403 Forbidden: "),
    ],
)
def test_a_refusal_names_verb_and_resource(
    api: ApiServer,
    store: KubeStore,
    config: NetworkConfig,
    *,
    forbidden: tuple[str, str],
    words: str,
) -> None:
    api.forbidden.add(forbidden)
    with pytest.raises(StoreAuthError, match=words):
        store.acquire(make_claim(), config)


def test_an_answer_without_our_annotations_is_refused(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    api.fail("patch", Fault(200, text=json.dumps(api.nodes[NODE])))
    with pytest.raises(StoreRefusedError, match=f"node {NODE} does not keep our annotations"):
        store.acquire(make_claim(), config)


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "Status", "metadata": {}}'])
@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("get", "get nodes: kubernetes answer: got .* expected a node "),
        ("patch", "patch nodes/status: kubernetes answer: got .* expected a node "),
    ],
)
def test_an_answer_that_is_no_node_says_nothing_of_ours(
    api: ApiServer, store: KubeStore, config: NetworkConfig, *, verb: str, words: str, text: str
) -> None:
    api.fail(verb, Fault(200, text=text))
    with pytest.raises(StoreUnavailableError, match=words):
        store.acquire(make_claim(), config)
    assert store.acquire(make_claim(), config).lease == OWN


def test_what_the_server_makes_of_our_text_counts_as_ours(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    """Something in the API server that rewrites annotations is not fought against."""
    rewritten = api.nodes[NODE]
    rewritten["metadata"]["annotations"] = annotations(200, public_ip="203.0.113.1")
    api.fail("patch", Fault(200, text=json.dumps(rewritten)))
    api.annotate(NODE, kube_subnet_manager="true", public_ip="203.0.113.1")
    api.annotate(NODE, backend_type="vxlan", backend_data=data(200))
    own = store.acquire(make_claim(), config)
    assert own.lease.public_ip == IPv4Address("203.0.113.1")
    with Following(store) as following:
        assert following.of(Snapshot)[0].leases == (own.lease,)


def test_the_node_can_be_asked_for_by_our_pod(
    api: ApiServer, options: KubeOptions, config: NetworkConfig
) -> None:
    by_pod = replace(options, node=PodName("kube-flannel", "kersey-x1"))
    with KubeStore(by_pod) as store:
        with pytest.raises(StoreRefusedError, match=r'get pods: HTTP 404 .*"kersey-x1" not found'):
            store.acquire(make_claim(), config)
        api.pods["kube-flannel", "kersey-x1"] = ""
        with pytest.raises(StoreUnavailableError, match="kube-flannel/kersey-x1 has no node yet"):
            store.acquire(make_claim(), config)
        api.fail("get", Fault(200, text="{}"))
        with pytest.raises(StoreUnavailableError, match=r"get pods: .* expected a pod"):
            store.acquire(make_claim(), config)
        api.pods["kube-flannel", "kersey-x1"] = NODE
        assert store.acquire(make_claim(), config).lease == OWN
        store.acquire(make_claim(), config)
    assert sum("/pods/" in seen.path for seen in api.of("get")) == 4


def test_what_the_node_remembers(api: ApiServer, store: KubeStore, config: NetworkConfig) -> None:
    assert store.remembered() == Remembered("", b"", OWN.subnet, None)
    store.acquire(make_claim(), config)
    api.annotate(NODE, node_public_ip="198.18.7.7")
    assert store.remembered() == Remembered(
        "vxlan", data(200).encode(), OWN.subnet, IPv4Address("198.18.7.7")
    )
    api.annotate(NODE, node_public_ip="eth0", backend_data="null")
    with pytest.raises(InvalidInputError, match="node-public-ip: got 'eth0', expected an IPv4"):
        store.remembered()
    api.annotate(NODE, node_public_ip=None)
    assert store.remembered().backend_data == b""
    api.put(NODE)
    with pytest.raises(InvalidInputError, match="podCIDR: got '', expected an IPv4 subnet"):
        store.remembered()


# Our own lease in the watch


@pytest.fixture
def own(store: KubeStore, config: NetworkConfig) -> Lease:
    return store.acquire(make_claim(), config).lease


def test_our_own_lease_is_in_the_snapshot(own: Lease, following: Following, api: ApiServer) -> None:
    assert following.events == [Snapshot((own,))]
    api.heartbeat(NODE)
    join(api, 1)
    following.wait_for_kind(Changed)
    assert following.kinds() == ["Snapshot", "Changed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"public_ip": "198.18.0.1"},
        {"backend_data": data(1)},
        {"backend_type": "host-gw"},
        {"kube_subnet_manager": None},
        {"public_ip": None},
        {"public_ip": "garbage"},
    ],
    ids=str,
)
def test_our_node_is_written_again_when_somebody_else_changed_it(
    own: Lease,
    store: KubeStore,
    following: Following,
    api: ApiServer,
    config: NetworkConfig,
    *,
    changes: dict[str, str | None],
) -> None:
    api.annotate(NODE, **changes)
    following.wait_for_kind(Removed)
    assert following.of(Removed) == [Removed(own.subnet)]
    store.acquire(make_claim(), config)
    following.wait_for_kind(Changed)
    assert following.of(Changed) == [Changed(own)]
    assert following.state == {own.subnet: own}


def test_what_we_write_ourselves_is_never_a_loss(
    own: Lease, api: ApiServer, store: KubeStore, following: Following, config: NetworkConfig
) -> None:
    with api.muted():  # what was written is seen after the last writing
        for number in range(1, 30):
            own = store.acquire(make_claim(backend_data=data(number).encode()), config).lease
    for number in range(1, 30):
        own = store.acquire(make_claim(backend_data=data(number).encode()), config).lease
    following.wait_for(lambda: following.state == {own.subnet: own})
    assert set(following.kinds()) == {"Snapshot", "Changed"}


def test_another_node_with_our_pod_cidr_is_skipped(
    own: Lease, following: Following, api: ApiServer
) -> None:
    api.put("thief", cidr=cidr(200), annotations=annotations(1))
    join(api, 2)
    following.wait_for_kind(Changed)
    assert following.kinds() == ["Snapshot", "Skipped", "Changed"]
    api.delete("thief")
    join(api, 3)
    following.wait_for(lambda: len(following.of(Changed)) == 2)
    assert following.state[own.subnet] == own
    assert not following.of(Removed)


def test_the_agents_table_sees_our_loss_and_the_keeper_mends_it(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    reports: queue.SimpleQueue[LeaseHeld | LeaseTrouble] = queue.SimpleQueue()
    keeper = LeaseKeeper(
        store=store, config=config, claim=make_claim(), renew_margin=3600, report=reports.put
    )
    with keeper:
        held = reports.get(timeout=10)
        assert isinstance(held, LeaseHeld)
        table = LeaseTable(held.own.lease)
        stop = threading.Event()
        events = store.watch(stop)
        table.apply(next(events))
        assert not table.own_missing
        api.annotate(NODE, backend_data=data(1))
        table.apply(next(events))
        assert table.own_missing
        keeper.reclaim()
        again = reports.get(timeout=10)
        assert again == held
        table.apply(next(events))
        assert not table.own_missing
        stop.set()


# The NetworkUnavailable condition


def condition(api: ApiServer) -> dict[str, str]:
    return {
        key: each[key]
        for each in api.nodes[NODE]["status"]["conditions"]
        if each["type"] == "NetworkUnavailable"
        for key in ("status", "reason")
    }


def test_network_unavailable_is_cleared_once_and_kept(api: ApiServer, store: KubeStore) -> None:
    store.announce_network()
    wait_until(lambda: condition(api), timeout=5, what="the condition")
    assert condition(api) == {"status": "False", "reason": "FlannelIsUp"}
    (patch,) = api.of("patch")
    (written,) = json.loads(patch.body)["status"]["conditions"]
    assert written["lastHeartbeatTime"] == written["lastTransitionTime"]
    assert patch.content_type == PATCH_TYPE
    others = [each["type"] for each in api.nodes[NODE]["status"]["conditions"]]
    assert others == ["Ready", "NetworkUnavailable"]
    store.announce_network()
    api.wait_for("get", 2)
    assert len(api.of("patch")) == 1


def test_network_unavailable_is_tried_until_it_works(
    api: ApiServer,
    store: KubeStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube, "CONDITION_RETRY", (0.05, 0.1))
    api.fail("patch", *[Fault(500)] * 3, Fault(403), Fault(409))
    with caplog.at_level(logging.WARNING):
        store.announce_network()
        wait_until(lambda: condition(api), timeout=5, what="the condition")
    assert len(api.of("patch")) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "condition NetworkUnavailable not cleared, trying on"
    ] * 3  # by kind of trouble, not by try


def test_network_unavailable_is_cleared_on_a_node_made_anew(
    api: ApiServer, store: KubeStore, config: NetworkConfig
) -> None:
    store.acquire(make_claim(), config)
    assert not condition(api)
    store.announce_network()
    wait_until(lambda: condition(api), timeout=5, what="the condition")
    api.delete(NODE)
    api.put(NODE, cidr=cidr(200))
    store.acquire(make_claim(), config)
    wait_until(lambda: condition(api), timeout=5, what="the condition of the new node")


def test_network_unavailable_is_left_alone_when_told_to(
    api: ApiServer, options: KubeOptions, config: NetworkConfig
) -> None:
    with KubeStore(replace(options, clears_network_unavailable=False)) as store:
        store.announce_network()
        store.acquire(make_claim(), config)
        assert "node-condition" not in {thread.name for thread in threading.enumerate()}
    assert not condition(api)


# The network config


def test_config_comes_from_a_file(options: KubeOptions, store: KubeStore) -> None:
    parse_network_config(store.read_config())
    options.net_config_path.unlink()
    with pytest.raises(
        InvalidInputError, match=r"^--net-config-path: got '.*net-conf.json', .*\(No"
    ):
        store.read_config()


def test_a_config_that_is_swapped_is_seen(
    tmp_path: Path, options: KubeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "CONFIG_INTERVAL", 0.02)
    stop, seen = threading.Event(), list[bytes]()
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "net-conf.json").write_text(version)
    link = tmp_path / "mounted"
    link.symlink_to("one")
    with KubeStore(replace(options, net_config_path=link / "net-conf.json")) as store:
        assert store.read_config() == b"one"
        thread = threading.Thread(target=lambda: seen.extend(store.watch_config(stop)))
        thread.start()
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        wait_until(lambda: seen == [b"two"], timeout=5, what="the swap")
        link.unlink()
        (tmp_path / "next").symlink_to("one")
        (tmp_path / "next").rename(link)
        wait_until(lambda: seen == [b"two", b"one"], timeout=5, what="the way back")
        stop.set()
        thread.join(1)
        assert not thread.is_alive()
