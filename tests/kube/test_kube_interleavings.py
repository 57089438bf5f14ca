"""Random lives of a cluster: whatever nodes, server and network do, the leases are right after it.

Each example is played against a real server and our own writing beside it; the daemon's answer to a
lost lease, to claim it again, is part of the play.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from etcd.following import Following
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kersey_control.errors import StoreError
from kersey_control.netconfig import parse_network_config
from kersey_control.subnets import kube, kube_http, kube_watch
from kersey_control.subnets.kube import KubeOptions, KubeStore
from kube.api_server import ApiServer, Fault
from kube.members import CONFIG, NODE, annotations, cidr, data, expected, held, join, make_claim
from testbed.waiting import wait_until

OWN_SUBNET = IPv4Network(cidr(200))
NETWORK = parse_network_config(CONFIG)


class Play:
    """One cluster, one store, one watch, and what may happen to them."""

    def __init__(self, api: ApiServer, store: KubeStore, following: Following) -> None:
        self.api = api
        self.store = store
        self.following = following
        self.claim = make_claim()
        self.is_up = True

    def join(self, number: int) -> None:
        join(self.api, number)

    def leave(self, number: int) -> None:
        if f"n{number:04}" in self.api.nodes:
            self.api.delete(f"n{number:04}")

    def change(self, number: int) -> None:
        name = f"n{number:04}"
        if name in self.api.nodes:
            self.api.annotate(name, backend_data=data(self.api.revision % 251))

    def spoil(self, number: int) -> None:
        """Make a node unreadable, or no member any more."""
        name = f"n{number:04}"
        if name in self.api.nodes:
            broken = {"public_ip": "garbage"} if number % 2 else {"kube_subnet_manager": None}
            self.api.annotate(name, **broken)

    def move(self, number: int) -> None:
        """Make a node anew with another podCIDR."""
        self.leave(number)
        self.api.put(f"n{number:04}", cidr=cidr(number + 100), annotations=annotations(number))

    def beat(self, number: int) -> None:
        for name in list(self.api.nodes)[: number + 1]:
            self.api.heartbeat(name)

    def tamper(self, number: int) -> None:
        """Let somebody change our own node."""
        self.api.annotate(NODE, public_ip=f"198.18.9.{number}")

    def remake_own(self, _: int) -> None:
        self.api.delete(NODE)
        self.api.put(NODE, cidr=cidr(200))

    def write(self, number: int) -> None:
        self.claim = make_claim(backend_data=data(number + 50).encode())
        self.acquire()

    def acquire(self) -> None:
        with suppress(StoreError):
            self.store.acquire(self.claim, NETWORK)

    def fail(self, number: int) -> None:
        kinds = ("list", "watch", "watch", "patch", "patch", "get")
        self.api.fail(kinds[number % 6], Fault((410, 503, 0, 409, 500, 429)[number % 6]))

    def pass_time(self, number: int) -> None:
        """Wait until something more was asked of the server, or not, as it comes."""
        asked = len(self.api.requests)
        with suppress(TimeoutError):
            wait_until(
                lambda: len(self.api.requests) > asked, timeout=0.01 * number, what="a request"
            )

    def stop(self, _: int) -> None:
        self.api.stop()
        self.is_up = False

    def start(self, _: int) -> None:
        if not self.is_up:
            self.api.start()
            self.is_up = True

    def compact(self, _: int) -> None:
        self.api.compact()

    def cut(self, _: int) -> None:
        self.api.cut()

    def advance(self, _: int) -> None:
        self.api.advance()
        self.api.bookmark()

    def settle(self) -> None:
        """Let everything work again and wait until leases and nodes agree."""
        self.api.faults.clear()
        self.start(0)
        wait_until(self._is_settled, timeout=20, what="leases equal to nodes")

    def _is_settled(self) -> bool:
        state = held(self.following.state)
        if state.get(OWN_SUBNET) != self._own():
            self.acquire()  # as the agent does when its lease is gone, and the keeper after a fault
            return False
        return state == expected(self.api) and self.outages()[-1:] != ["Lost"]

    def outages(self) -> list[str]:
        return [kind for kind in self.following.kinds() if kind in ("Lost", "Restored")]

    def _own(self) -> tuple[str, str, str, str]:
        claim = self.claim
        return str(claim.public_ip), claim.backend_type, claim.backend_data.decode(), NODE


ACTS: tuple[Callable[[Play, int], None], ...] = (
    *(Play.join,) * 3,
    *(Play.pass_time,) * 3,
    *(Play.cut,) * 2,
    Play.leave,
    Play.change,
    Play.spoil,
    Play.move,
    Play.beat,
    Play.tamper,
    Play.remake_own,
    Play.write,
    *(Play.fail,) * 3,
    Play.stop,
    *(Play.start,) * 2,
    *(Play.compact,) * 2,
    Play.advance,
)
acts = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 11)), max_size=25)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hundreds of outages fit into a minute."""
    monkeypatch.setattr(kube_watch, "RETRY_INITIAL", 0.01)
    monkeypatch.setattr(kube_watch, "RETRY_CAP", 0.05)
    monkeypatch.setattr(kube_watch, "PAGE_SIZE", 3)
    monkeypatch.setattr(kube, "CONFLICT_PAUSE", 0.01)
    monkeypatch.setattr(kube_http, "MAX_RETRY_AFTER", 0)
    monkeypatch.setattr(kube_http, "POLL", 0.01)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(acts, st.booleans(), st.sampled_from([1 << 20, 13]))
def test_leases_equal_nodes_after_everything(
    walk: list[tuple[Callable[[Play, int], None], int]],
    gone_as_event: bool,  # noqa: FBT001  # given by hypothesis
    piece: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder, ApiServer() as api:
        path = Path(folder) / "net-conf.json"
        api.put(NODE, cidr=cidr(200))
        api.gone_as_event, api.piece = gone_as_event, piece
        options = KubeOptions(node=NODE, api_url=api.url, net_config_path=path)
        with KubeStore(options) as store, Following(store) as following:
            play = Play(api, store, following)
            play.acquire()
            for act, number in walk:
                act(play, number)
            play.settle()
            changes = play.outages()
            assert changes == ["Lost", "Restored"] * (len(changes) // 2)
