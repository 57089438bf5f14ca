"""Taking and keeping a subnet, against a real etcd."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from etcd.bench import Bench, make_claim, make_lease
from etcd.etcd_server import EtcdServer
from kersey_control.clocks import Moment
from kersey_control.errors import (
    DuplicateNodeError,
    InvalidInputError,
    StoreConflictError,
    StoreRefusedError,
    StoreUnavailableError,
    SubnetsExhaustedError,
)
from kersey_control.lease import decode_lease
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.subnets.base import OwnLease
from kersey_control.subnets.etcd import EtcdOptions, EtcdStore


def test_new_node_gets_a_lease_of_24_hours_in_flannels_bytes(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    before = Moment.now()
    own = store.acquire(make_claim(), config)
    after = Moment.now()
    found = bench.server.get(bench.key(own.lease))
    assert found is not None
    assert found["value"] == (
        b'{"PublicIP":"198.18.0.201","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"0e:2a:00:00:00:01"},"NodeID":"node-200"}'
    )
    assert own.revision == int(found["mod_revision"])
    ttl = bench.server.call("lease/timetolive", {"ID": found["lease"]})
    day = 24 * 60 * 60
    assert int(ttl["grantedTTL"]) == day
    assert own.expires_at is not None
    assert after.until(own.expires_at) <= day <= before.until(own.expires_at)


def test_own_address_is_found_before_the_previous_subnet(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    bench.put_lease(make_lease(7))
    own = store.acquire(make_claim(7, previous=IPv4Network("10.5.99.0/24")), config)
    assert own.lease.subnet == make_lease(7).subnet


def test_previous_subnet_is_taken_when_it_is_free(store: EtcdStore, config: NetworkConfig) -> None:
    own = store.acquire(make_claim(previous=IPv4Network("10.5.99.0/24")), config)
    assert own.lease.subnet == IPv4Network("10.5.99.0/24")


def test_previous_subnet_of_another_node_is_not_taken(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    bench.put_lease(make_lease(7))
    own = store.acquire(make_claim(previous=make_lease(7).subnet), config)
    assert own.lease.subnet != make_lease(7).subnet


def test_restart_keeps_the_subnet_and_leaves_one_etcd_lease(
    own_bench: Bench, config: NetworkConfig
) -> None:
    subnets = set()
    for _ in range(3):
        with EtcdStore(own_bench.options) as store:
            own = store.acquire(make_claim(), config)
            subnets.add(own.lease.subnet)
    assert len(subnets) == 1
    assert own_bench.server.lease_ids() == {own_bench.etcd_lease_of(own.lease)}


def test_record_written_by_flannel_is_adopted_and_marked(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    bench.put_lease(make_lease(7))
    own = store.acquire(make_claim(7), config)
    found = bench.server.get(bench.key(own.lease))
    assert found is not None
    assert json.loads(found["value"])["NodeID"] == "node-7"


def test_record_that_no_longer_fits_is_deleted_and_its_etcd_lease_revoked(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    odd = replace(make_lease(7), subnet=IPv4Network("10.5.64.0/20"))
    etcd_lease = bench.put_lease(odd)
    own = store.acquire(make_claim(7), config)
    assert own.lease.subnet.prefixlen == 24
    assert bench.server.keys(bench.subnets) == [bench.key(own.lease)]
    assert etcd_lease not in bench.server.lease_ids()


def test_dual_stack_records_harm_no_one_and_our_own_keeps_its_ipv4_subnet(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    for number in (7, 8):
        bench.put_lease(
            replace(make_lease(number), subnet_v6=IPv6Network(f"fd05:0:0:{number}::/64"))
        )
    own = store.acquire(make_claim(7), config)
    assert own.lease.subnet == make_lease(7).subnet
    assert own.lease.subnet_v6 is None
    assert len(bench.server.keys(bench.subnets)) == 2


def test_dual_stack_record_is_kept_where_the_network_has_ipv6(
    store: EtcdStore, bench: Bench
) -> None:
    config = parse_network_config(
        b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48",'
        b' "Backend": {"Type": "vxlan"}}'
    )
    dual = replace(make_lease(7), subnet_v6=IPv6Network("fd05:0:0:7::/64"))
    bench.put_lease(dual)
    own = store.renew(store.acquire(make_claim(7), config), make_claim(7))
    assert own.lease.subnet_v6 == dual.subnet_v6
    assert bench.server.keys(bench.subnets) == [bench.key(dual)]


def test_garbage_beside_the_leases_does_not_stop_a_node(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    bench.server.put(bench.subnets + "garbage", "x")
    bench.server.put(bench.subnets + "10.5.3.0-24", "not json")
    assert store.acquire(make_claim(), config).lease.subnet.prefixlen == 24
    assert [skipped.record for skipped in store.list_leases().skipped] == ["10.5.3.0-24", "garbage"]


def test_unreadable_record_keeps_its_subnet_from_being_given_out(
    store: EtcdStore, bench: Bench
) -> None:
    config = parse_network_config(
        b'{"Network": "10.5.0.0/16", "SubnetMin": "10.5.3.0", "SubnetMax": "10.5.4.0"}'
    )
    bench.server.put(bench.subnets + "10.5.3.0-24", "not json")
    claim = make_claim(previous=IPv4Network("10.5.3.0/24"))
    assert store.acquire(claim, config).lease.subnet == IPv4Network("10.5.4.0/24")


def test_full_network_is_reported_as_such(store: EtcdStore, bench: Bench) -> None:
    config = parse_network_config(
        b'{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.2.0"}'
    )
    for number in range(2):
        bench.put_lease(make_lease(number))
    with pytest.raises(SubnetsExhaustedError, match="2 leases"):
        store.acquire(make_claim(), config)


def test_twelve_simultaneous_starters_share_twelve_subnets(bench: Bench) -> None:
    config = parse_network_config(
        b'{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.12.0"}'
    )
    together = threading.Barrier(12)
    before = bench.server.lease_ids()

    def start(number: int) -> OwnLease:
        with EtcdStore(bench.options) as store:
            together.wait(10)
            return store.acquire(make_claim(number), config)

    with ThreadPoolExecutor(12) as pool:
        owned = list(pool.map(start, range(12)))
    assert len({own.lease.subnet for own in owned}) == 12
    assert len(bench.server.lease_ids() - before) == 12


def test_reservation_stays_without_expiry_over_acquire_and_renew(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    before = bench.server.lease_ids()
    bench.put_lease(make_lease(7), seconds=0)
    own = store.acquire(make_claim(7), config)
    assert own.expires_at is None
    assert bench.etcd_lease_of(own.lease) == 0
    own = store.renew(own, make_claim(7, backend_data=b'{"VNI":2}'))
    assert own.expires_at is None
    assert own.lease.backend_data == b'{"VNI":2}'
    assert bench.etcd_lease_of(own.lease) == 0
    assert bench.server.lease_ids() == before


def test_second_node_with_our_address_is_refused_with_both_names_until_the_first_is_gone(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    first = make_lease(7, node_id="first")
    bench.put_lease(first)
    with pytest.raises(DuplicateNodeError) as refusal:
        store.acquire(make_claim(7, node_id="second"), config)
    for word in ("first", "second", "10.5.8.0-24", "198.18.0.8", "--public-ip"):
        assert word in str(refusal.value)
    bench.server.delete(bench.key(first))
    assert store.acquire(make_claim(7, node_id="second"), config).lease.node_id == "second"


def test_of_simultaneous_starters_with_one_address_at_most_one_stays(
    bench: Bench, config: NetworkConfig
) -> None:
    together = threading.Barrier(4)
    before = bench.server.lease_ids()

    def start(number: int) -> bool:
        with EtcdStore(bench.options) as store:
            together.wait(10)
            try:
                store.acquire(make_claim(7, node_id=f"twin-{number}"), config)
            except DuplicateNodeError:
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        stayed = sum(pool.map(start, range(4)))
    assert stayed == 1
    assert len(bench.server.keys(bench.subnets)) == 1
    assert len(bench.server.lease_ids() - before) == 1


def test_renewals_extend_the_lease_and_leave_no_etcd_lease_behind(
    own_bench: Bench, config: NetworkConfig
) -> None:
    with EtcdStore(own_bench.options) as store:
        own = first = store.acquire(make_claim(), config)
        used = {own_bench.etcd_lease_of(own.lease)}
        for _ in range(3):
            own = store.renew(own, make_claim())
            used.add(own_bench.etcd_lease_of(own.lease))
    assert len(used) == 4
    assert own_bench.server.lease_ids() == {own_bench.etcd_lease_of(own.lease)}
    assert own.revision > first.revision
    assert own.expires_at is not None
    assert first.expires_at is not None
    assert first.expires_at.until(own.expires_at) > 0


def test_etcd_lease_that_holds_another_key_is_not_revoked(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    etcd_lease = bench.put_lease(make_lease(7))
    bench.server.put(bench.subnets + "bystander", "x", lease=etcd_lease)
    store.acquire(make_claim(7), config)
    assert bench.subnets + "bystander" in bench.server.keys(bench.subnets)


def test_renewal_writes_the_present_backend_data(
    store: EtcdStore, bench: Bench, config: NetworkConfig
) -> None:
    own = store.acquire(make_claim(), config)
    own = store.renew(own, make_claim(backend_data=b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:99"}'))
    found = bench.server.get(bench.key(own.lease))
    assert found is not None
    key = bench.key(own.lease).removeprefix(bench.subnets)
    assert decode_lease(key, found["value"]) == own.lease


@pytest.mark.parametrize("is_deleted", [False, True], ids=["changed", "deleted"])
def test_renewal_of_a_record_that_is_not_as_we_left_it_is_a_conflict(
    own_bench: Bench, config: NetworkConfig, *, is_deleted: bool
) -> None:
    with EtcdStore(own_bench.options) as store:
        own = store.acquire(make_claim(), config)
        if is_deleted:
            own_bench.server.delete(own_bench.key(own.lease))
        else:
            own_bench.server.put(own_bench.key(own.lease), "changed")
        before = own_bench.server.lease_ids()
        with pytest.raises(StoreConflictError):
            store.renew(own, make_claim())
        assert own_bench.server.lease_ids() == before


def test_a_record_that_is_too_large_leaves_no_etcd_lease_behind(
    own_bench: Bench, config: NetworkConfig
) -> None:
    large = make_claim(backend_data=b'"%b"' % (b"x" * 2_000_000))
    with EtcdStore(own_bench.options) as store:
        for _ in range(3):
            with pytest.raises(StoreRefusedError, match="request is too large"):
                store.acquire(large, config)
    assert own_bench.server.lease_ids() == set()


def test_inventory_tells_expiry_and_reservation(store: EtcdStore, bench: Bench) -> None:
    bench.put_lease(make_lease(1), seconds=0)
    bench.put_lease(make_lease(2), seconds=600)
    reserved, leased = store.list_leases().leases
    assert reserved.expires_at is None
    assert leased.expires_at is not None
    assert leased.lease == make_lease(2)


def test_config_is_read_and_a_missing_one_named(store: EtcdStore, bench: Bench) -> None:
    with pytest.raises(InvalidInputError, match=bench.config_key):
        store.read_config()
    bench.server.put(bench.config_key, '{"Network": "10.5.0.0/16"}')
    assert store.read_config() == b'{"Network": "10.5.0.0/16"}'


def test_dead_endpoints_are_passed_over(bench: Bench, config: NetworkConfig) -> None:
    dead = "http://127.0.0.1:1"
    options = replace(bench.options, endpoints=(dead, "localhost:1", bench.server.url))
    with EtcdStore(options) as store:
        own = store.acquire(make_claim(), config)
        assert store.renew(own, make_claim()).lease == own.lease


def test_death_of_the_member_in_use_turns_to_the_next(
    own_etcd: EtcdServer, bench: Bench, config: NetworkConfig
) -> None:
    # Two clusters stand in for two members: what is under test is the way from one to the next.
    options = replace(bench.options, endpoints=(own_etcd.url, bench.server.url))
    with EtcdStore(options) as store:
        store.acquire(make_claim(), config)
        own_etcd.kill()
        assert store.acquire(make_claim(), config).lease.subnet.prefixlen == 24
    assert len(bench.server.keys(bench.subnets)) == 1


def test_no_endpoint_answering_is_unavailable_and_names_each(prefix: str) -> None:
    options = EtcdOptions(endpoints=("127.0.0.1:1", "127.0.0.1:2"), prefix=prefix)
    with EtcdStore(options) as store, pytest.raises(StoreUnavailableError, match=r":1.*:2"):
        store.read_config()
