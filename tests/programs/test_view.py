"""The view of pinned maps: what a daemon wrote and programs counted, read by somebody else."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import packets as p
import pytest
from bpf_lab import (
    NETWORK,
    OTHER,
    OTHER_NODE,
    OTHER_VTEP,
    OWN,
    PEER,
    PEER_NODE,
    PEER_VTEP,
    VTEP,
    private_bpffs,
    private_network,
)
from kersey_loader import layout
from kersey_loader.bpf import Map, pin
from kersey_loader.datapath import Count, Datapath, DatapathConfig, PeerEntry, Settings, load
from kersey_loader.errors import LoaderError
from kersey_loader.layout import Admission, Flow, FlowKey, MapSpec, MapType, SpoofCheck, Traffic
from kersey_loader.probe import probe
from kersey_loader.tunnel import VxlanTunnel
from kersey_loader.view import ViewedConfig, open_view

CONFIG = DatapathConfig(
    uplink=1,
    node=IPv4Address("198.18.0.1"),
    subnet=OWN,
    mtu=1450,
    pod_mtu=1400,
    tunnel=VxlanTunnel(vni=70000, port=8472, mac=p.mac(VTEP)),
)
ENTRY = PeerEntry(
    PEER, IPv4Address(PEER_NODE), p.mac(PEER_VTEP), nexthop=IPv4Address("198.18.0.254")
)
OTHER_ENTRY = PeerEntry(OTHER, IPv4Address(OTHER_NODE), p.mac(OTHER_VTEP))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    directory = tmp_path_factory.mktemp("bpf")
    found = probe(directory)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with private_network(), private_bpffs(directory):
        yield Settings(directory, network=NETWORK, subnet_len=24, max_flows=1024)


@pytest.fixture
def datapath(settings: Settings) -> Iterator[Datapath]:
    """Give a test what a daemon has loaded and configured."""
    with load(settings) as loaded:
        loaded.configure(CONFIG)
        loaded.replace_peers([ENTRY, OTHER_ENTRY])
        yield loaded


def test_the_settings_are_read_back(settings: Settings, datapath: Datapath) -> None:
    with open_view(settings.directory) as view:
        assert view.config == ViewedConfig(
            network=NETWORK,
            subnet=OWN,
            node=CONFIG.node,
            uplink=1,
            vni=70000,
            port=8472,
            mtu=1450,
            pod_mtu=1400,
            max_age=5.0,
            generation=datapath.generation,
            admission=Admission.STRICT,
            spoof=SpoofCheck.DROP,
        )
        assert view.max_flows == 1024
        assert view.clock().hertz == datapath.clock().hertz
        assert datapath.clock().jiffies - view.clock().jiffies + view.clock().hertz * 60 >= 0


def test_peers_are_read_with_the_sum_of_what_each_processor_counted(
    settings: Settings, datapath: Datapath
) -> None:
    counters = datapath.maps["peer_counters"]
    with open_view(settings.directory) as view:
        before = view.peers()[PEER].traffic
        assert before.fast_sent == Count(0, 0)
        cells = b"".join(
            bytes(Traffic(fast_sent_packets=cpu + 1, slow_received_bytes=100 * (cpu + 1)))
            for cpu in range(counters.cpus)
        )
        for number in range(1, counters.spec.max_entries):
            counters.update(number.to_bytes(4, "little"), cells)
        found = view.peers()
    total = sum(range(1, counters.cpus + 1))
    peer, other = found[PEER], found[OTHER]
    assert set(found) == {PEER, OTHER}
    assert (peer.node, peer.nexthop, peer.direct) == (ENTRY.node, ENTRY.nexthop, False)
    assert other.nexthop is None
    assert peer.traffic.fast_sent == Count(total, 0)
    assert peer.traffic.slow_received == Count(0, 100 * total)
    assert {PEER: peer.traffic, OTHER: other.traffic} == datapath.traffic()


def test_senders_ports_and_counters_are_those_of_the_daemon(
    settings: Settings, datapath: Datapath
) -> None:
    with open_view(settings.directory) as view:
        assert view.senders() == {ENTRY.node, OTHER_ENTRY.node}
        assert view.pod_ports() == datapath.pod_ports()
        assert view.counters() == datapath.counters()


def test_a_flow_is_read_and_a_flush_voids_it_for_both(
    settings: Settings, datapath: Datapath
) -> None:
    now = datapath.clock()
    stamp = datapath.generation << 48 | now.jiffies - 2 * now.hertz
    key = FlowKey(local=(10, 244, 1, 2), remote=(10, 244, 2, 9), protocol=6)
    flow = Flow(egress=stamp, ingress=stamp, egress_port=1, ingress_port=1)
    datapath.maps["flows"].update(bytes(key), bytes(flow))
    with open_view(settings.directory) as view:
        (seen,) = view.flows()
        assert (seen.local, seen.remote) == (IPv4Address("10.244.1.2"), IPv4Address("10.244.2.9"))
        assert seen.egress_age == pytest.approx(2.0, abs=1.0)
        view.flush()
    with open_view(settings.directory) as view:
        (seen,) = view.flows()
        assert (seen.egress_age, seen.ingress_age) == (None, None)
    with load(settings) as later:
        assert later.generation == datapath.generation + 1
    datapath.maps["flows"].delete(bytes(key))


def test_of_two_layouts_the_one_that_is_attached_counts(settings: Settings) -> None:
    new = replace(settings, max_flows=2048)
    with load(settings) as old, load(new) as newer:
        old.attach_uplink(1, direct=False)
        with open_view(settings.directory) as view:
            assert view.max_flows == 1024
        newer.attach_uplink(1, direct=False)
        with open_view(settings.directory) as view:
            assert view.max_flows == 2048
        old.attach_uplink(1, direct=False)
        old.retire_old()
        with open_view(settings.directory) as view:
            assert view.max_flows == 1024


def test_maps_of_another_version_are_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    home = settings.directory / "other" / "maps-0123456789abcdef"
    home.mkdir(parents=True)
    spec = MapSpec("cfg", MapType.ARRAY, 4, ctypes.sizeof(layout.Config) + 8, 1)
    with Map.create(spec) as made:
        pin(made.fd, home / "cfg")
    with pytest.raises(LoaderError, match="maps-0123456789abcdef/cfg is of another version"):
        open_view(home.parent)
    (home / "cfg").unlink()
    with pytest.raises(LoaderError, match="nothing of a fast path is pinned"):
        open_view(home.parent)
    with pytest.raises(LoaderError, match="nothing of a fast path is pinned"):
        open_view(tmp_path / "absent")


def test_before_anybody_configured_it_there_are_no_settings(settings: Settings) -> None:
    fresh = replace(settings, directory=settings.directory / "fresh")
    with load(fresh), open_view(fresh.directory) as view:
        assert view.config is None
        assert view.peers() == {}
