"""The status page in a real Chromium: what it shows, what it never does, and a live daemon's."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket
from typing import Any

import pytest
from browser import Browser
from kersey_control.metrics.history import History
from kersey_control.metrics.readings import Reader
from kersey_control.metrics.resource import Resource
from kersey_control.metrics.server import MetricsServer
from kersey_control.metrics.status_page import page_resources
from kersey_control.status import Status
from kersey_control.told import ToldOptions
from kersey_control.verdicts import WORDS
from kersey_loader.layout import Verdict
from overlay_view import SUBNETS, subnet_of
from testbed import Cluster, Node, udp_probe, wait_until

HOST = "127.0.0.1"
UNKNOWN = WORDS[Verdict.UNKNOWN_NODE]
PORT = 9475
SHOWN = "document.querySelector('main')?.hidden === false"
HOSTILE = "<img src=/x onerror=document.title='broken'><script>document.title='broken'</script>"
GROUND = {"light": bytes.fromhex("f4f6f9"), "dark": bytes.fromhex("0e131b")}
STILL = {"packets": 0, "bytes": 0}

Json = dict[str, Any]


def need_chromium() -> None:
    if shutil.which("chromium") is None:
        pytest.skip("missing: chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need_chromium()
    with Browser(None, tmp_path_factory.mktemp("browser") / "own") as running:
        yield running


class Shown:
    """A page in a browser, of a daemon whose answer is `state` and can be changed."""

    def __init__(self, browser: Browser, state: Json) -> None:
        self.browser = browser
        self.state = state
        self._running: MetricsServer | None = None
        self._port = 0

    def serve(self) -> None:
        resources = page_resources(Status(), ToldOptions(), Reader(Status()), History())
        answer = Resource(lambda: json.dumps(self.state).encode(), "application/json")
        self._running = MetricsServer(
            {**resources, "/status.json": answer}, address=HOST, port=self._port
        ).__enter__()
        self._port = self._running.port

    def close(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
        self._running = None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._port}/"

    def open(self, *, width: int = 1280, height: int = 800) -> None:
        """Show the page anew."""
        self.browser.events.clear()
        self.browser.resize(width, height)
        self.browser.open(self.address)
        self.browser.wait(SHOWN)

    def refresh(self) -> None:
        """Have the page ask now and not in some seconds."""
        self.browser.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


@pytest.fixture
def shown(browser: Browser) -> Iterator[Shown]:
    """Give a test a page with one peer that answers, to be opened."""
    page = Shown(browser, state_with([peer(1)]))
    page.serve()
    yield page
    page.close()
    browser.open("about:blank")


def state_with(peers: list[Json]) -> Json:
    """Return what a daemon with these peers would answer."""
    resources = page_resources(Status(), ToldOptions(), Reader(Status()), History())
    state: Json = json.loads(resources["/status.json"].make())
    programmed = sum(each["condition"] == "programmed" for each in peers)
    state["status"].update(
        ready=True,
        silent_seconds=0.4,
        subnet="10.244.0.0/24",
        network="10.244.0.0/16",
        datapath={"mode": "bpf", "reason": "loaded"},
        store={"connected": True, "trouble": ""},
        fast_path={"verdicts": {}, "troubles": {}},
    )
    state["status"]["peers"].update(desired=len(peers), programmed=programmed)
    state["status"]["options"].update(admission="strict", spoof_check="drop")
    state.update(host="node-a", peers=peers)
    return state


def peer(number: int, **reach: object) -> Json:
    known = {"answering": "answers", "round_trip_seconds": 0.00031, "answered_seconds_ago": 1.0}
    losses = {"loss": 0.0, "loss_out": 0.0, "loss_in": 0.0, "one_way": None}
    return {
        "subnet": f"10.{244 + number // 256}.{number % 256}.0/24",
        "node": str(IPv4Address("198.18.0.11") + number),
        "via": "vxlan",
        "condition": "programmed",
        "reason": "",
        "mac": None,
        "reach": known | losses | reach,
        "traffic": None,
    }


def silent(number: int, one_way: str | None = None) -> Json:
    return peer(
        number,
        answering="silent",
        round_trip_seconds=None,
        one_way=one_way,
        answered_seconds_ago=90,
    )


def sample(ago: float, **figures: object) -> Json:
    nothing = dict.fromkeys(("fast_packets", "slow_packets", "fast_bytes", "slow_bytes"), 0)
    return {"seconds_ago": ago, "seconds": 10.0, **nothing, "forged": {}, **figures}


def test_the_page_asks_only_its_own_server_and_nothing_complains(shown: Shown) -> None:
    shown.state["history"] = [sample(10, fast_packets=9, slow_packets=1)]
    shown.open()
    assert {address for address in shown.browser.requests() if not address.startswith("data:")} <= {
        shown.address + path
        for path in ("", "status.json", "page/page.css", *(f"page/{name}.js" for name in modules()))
    }
    assert shown.browser.complaints() == []


def modules() -> list[str]:
    resources = page_resources(Status(), ToldOptions(), Reader(Status()), History())
    return [Path(path).stem for path in resources if path.endswith(".js")]


def test_what_others_wrote_is_text_wherever_it_stands(shown: Shown) -> None:
    refused = {
        **peer(1),
        "node": HOSTILE,
        "condition": "refused",
        "reason": HOSTILE,
        "via": HOSTILE,
    }
    shown.state = state_with([refused, {**peer(2), "subnet": HOSTILE}])
    shown.state["host"] = HOSTILE
    status = shown.state["status"]
    status["store"] = {"connected": False, "trouble": HOSTILE}
    status["fast_path"] = {"verdicts": {"from_pod": {HOSTILE: 1}}, "troubles": {HOSTILE: HOSTILE}}
    status["datapath"]["reason"] = HOSTILE
    shown.state["history"] = [sample(10, forged={HOSTILE: 3})]
    shown.open()
    assert HOSTILE in shown.browser.text("#troubles")
    assert HOSTILE in shown.browser.text("#peers")
    assert shown.browser.count("img") == 0
    assert shown.browser.count("body script") == 0
    assert shown.browser.evaluate("document.title") == f"{HOSTILE} · Kersey"
    assert shown.browser.complaints() == []


def test_nothing_but_the_pages_own_script_can_run_or_load(shown: Shown) -> None:
    shown.open()
    page = shown.browser
    as_markup = "try { document.body.innerHTML = '<b>x</b>'; 'set' } catch (error) { error.name }"
    assert page.evaluate(as_markup) == "TypeError"
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('img'),"
        " {src: 'http://127.0.0.1:1/x.png'}))"
    )
    wait_until(page.complaints, timeout=10, what="a refusal")
    assert "Content Security Policy" in json.dumps(page.complaints())


def test_each_direction_to_each_of_a_few_peers_is_drawn(shown: Shown) -> None:
    shown.state = state_with(
        [peer(1), silent(2), silent(3, "out"), silent(4, "in"), peer(5, loss_out=0.25)]
    )
    shown.state["peers"].append({**peer(6), "reach": None})
    shown.open()
    ways = {
        tone: shown.browser.count(f"#map .way.{tone}") for tone in ("good", "some", "bad", "none")
    }
    assert ways == {"good": 2 + 1 + 1 + 1, "some": 1, "bad": 2 + 1 + 1, "none": 2}
    assert shown.browser.count("#map .cross") == ways["bad"]
    words = shown.browser.text("#peers tbody")
    assert (
        "10.244.3.0/24\t198.18.0.14\tvxlan\tpackets to it are lost, those from it arrive" in words
    )
    assert "packets to it arrive, those from it are lost; last answer 1 min ago" in words
    assert "loses 25.0 % to it" in words
    assert "not probed" in words
    assert "0.31 ms" in shown.browser.evaluate("document.querySelector('#map').textContent")
    assert shown.browser.text("#map-words") == (
        "6 peers: 3 silent, 1 losing packets, 1 not probed, 1 answering."
    )


def test_a_thousand_peers_are_a_grid_with_the_worst_first(shown: Shown) -> None:
    many = [peer(number) for number in range(1, 1001)]
    many[499:501] = [silent(500), silent(501, "out")]
    many[700] |= {"condition": "failing", "reason": "EPERM: no"}
    shown.state = state_with(many)
    shown.open()
    headings = shown.browser.evaluate(
        "[...document.querySelectorAll('#map h3')].map(h => h.innerText)"
    )
    assert headings == ["Not programmed: 1", "Silent: 2", "Answering: 997"]
    assert shown.browser.count("#map .cell") == 1000
    assert shown.browser.count("#map .out-bad.in-good") == 1
    assert "failing: EPERM: no" in shown.browser.evaluate("document.querySelector('.cell').title")
    rows = shown.browser.text("#peers tbody").splitlines()
    assert [row.split("\t")[0] for row in rows[:3]] == [
        "10.246.189.0/24",
        "10.245.244.0/24",
        "10.245.245.0/24",
    ]
    assert len(rows) == 25
    shown.browser.evaluate("document.querySelector('#more').click()")
    assert shown.browser.count("#peers tbody tr") == 1000


def test_a_peer_is_found_by_its_cell_or_by_a_word(shown: Shown) -> None:
    shown.state = state_with([silent(7), *(peer(number) for number in range(10, 40))])
    shown.open()
    shown.browser.evaluate("document.querySelectorAll('.cell')[3].click()")
    assert shown.browser.text("#peers tbody").split("\t")[0] == "10.244.12.0/24"
    assert shown.browser.text("#peers-count") == "1 of 31 peers"
    shown.browser.evaluate(
        "const field = document.querySelector('#filter'); field.value = 'does not';"
        " field.dispatchEvent(new Event('input'))"
    )
    assert shown.browser.text("#peers tbody").split("\t")[0] == "10.244.7.0/24"


def test_rows_are_sorted_by_what_is_clicked_and_backwards_by_a_second_click(shown: Shown) -> None:
    trips = {1: 0.002, 2: 0.009, 3: 0.001}
    shown.state = state_with([peer(n, round_trip_seconds=trip) for n, trip in trips.items()])
    shown.open()
    head = (
        "[...document.querySelectorAll('#peers thead th')].find(h => h.innerText == 'Round trip')"
    )
    order = (
        "[...document.querySelectorAll('#peers tbody th')]"
        ".map(h => h.innerText.split('.')[2]).join('')"
    )
    shown.browser.evaluate(f"{head}.firstChild.click()")
    assert shown.browser.evaluate(order) == "213"
    shown.browser.evaluate(f"{head}.firstChild.click()")
    assert shown.browser.evaluate(order) == "312"
    assert shown.browser.count("th[aria-sort=descending]") == 1


def test_rates_are_what_came_between_two_answers(shown: Shown) -> None:
    traffic = {
        "fast_sent": STILL,
        "slow_sent": STILL,
        "fast_received": STILL,
        "slow_received": STILL,
    }
    shown.state["peers"][0]["traffic"] = traffic
    shown.open()
    assert "known with the next answer" in shown.browser.text("#tiles")
    moved = deepcopy(traffic)
    moved["fast_sent"] = {"packets": 99, "bytes": 10**9}
    moved["slow_received"] = {"packets": 1, "bytes": 10**3}
    shown.state["peers"][0]["traffic"] = moved
    shown.refresh()
    shown.browser.wait("document.querySelector('#tiles').innerText.includes('bit/s sent')")
    row = shown.browser.text("#peers tbody").split("\t")
    assert float(row[7].split()[0]) > 0
    assert row[7].endswith(("Mbit/s", "Gbit/s"))
    assert row[9] == "99.0 %"


def test_a_daemon_that_does_not_answer_is_named_with_the_age_of_what_is_shown(shown: Shown) -> None:
    shown.open()
    assert "updated" in shown.browser.text("#pulse")
    shown.close()
    shown.refresh()
    shown.browser.wait("document.querySelector('#pulse').className == 'lost'")
    assert "kerseyd does not answer what you see is" in shown.browser.text("#pulse")
    assert shown.browser.text("[role=status]") == "kerseyd does not answer"
    assert shown.browser.count("body.stale") == 1
    assert "10.244.1.0/24" in shown.browser.text("#peers")
    shown.serve()
    shown.refresh()
    shown.browser.wait("document.querySelector('#pulse').className == 'live'")
    assert shown.browser.count("body.stale") == 0


def test_reasons_are_those_of_the_programs_that_leave_packets_to_the_kernel(shown: Shown) -> None:
    shown.state["status"]["fast_path"]["verdicts"] = {
        "from_pod": {"fast": 9, "stale": 2, "pod_tunnel": 5},
        "from_uplink": {"unrelated": 3, "stale": 1, "congestion": 4},
        "to_overlay": {"witnessed": 8},
        "wire": {"fast": 7, "decapsulated": 6, "unknown_node": 5},
    }
    shown.open()
    assert [row.split("\t") for row in shown.browser.text("#reasons tbody").splitlines()] == [
        ["congestion", WORDS[Verdict.CONGESTION], "0", "4"],
        ["stale", WORDS[Verdict.STALE], "2", "1"],
    ]


def test_another_version_of_the_daemon_brings_its_own_page(shown: Shown) -> None:
    shown.open()
    shown.browser.evaluate("window.old = true")
    shown.state["status"]["version"] = "99.0"
    shown.refresh()
    shown.browser.wait(f"window.old === undefined && {SHOWN}")
    assert "kerseyd 99.0" in shown.browser.text("#place")


def test_the_last_hour_is_told_in_charts(shown: Shown) -> None:
    shown.state["history"] = [
        sample(1200, fast_packets=50, slow_packets=50, fast_bytes=12_500_000),
        sample(600),
        sample(10, fast_packets=300, slow_packets=0, forged={"unknown_node": 7, "pod_tunnel": 2}),
    ]
    shown.open()
    assert shown.browser.text("#share .words") == "87.5 % of 400 packets; lowest 50.0 %"
    assert shown.browser.text("#traffic .words") == "12.5 MB; most 10 Mbit/s"
    assert shown.browser.text("#forged .words") == "9 packets, dropped"
    assert f"7: {UNKNOWN}" in shown.browser.text("#forged .keys")
    line = shown.browser.evaluate("document.querySelector('#share .line').getAttribute('d')")
    assert line.count("M") == 2  # broken where there was no traffic
    shown.browser.evaluate(
        "const box = document.querySelector('#share svg').getBoundingClientRect();"
        "document.querySelector('#share svg').dispatchEvent(new PointerEvent('pointermove',"
        " {bubbles: true, clientX: box.right - 9, clientY: box.top + 40}))"
    )
    assert shown.browser.text("#share .words").endswith(": 100 % of 300 packets")


def test_what_is_wrong_stands_at_the_top(shown: Shown) -> None:
    shown.open()
    assert shown.browser.count("#troubles[hidden]") == 1
    shown.state["status"] |= {
        "silent_seconds": 71.0,
        "ready": False,
        "lease": {"expires_at": None, "trouble": "no subnet is free"},
        "skipped_records": 2,
        "probes_trouble": "EADDRINUSE",
    }
    shown.state["status"]["fast_path"]["troubles"] = {"attach": "ENODEV"}
    shown.refresh()
    shown.browser.wait("!document.querySelector('#troubles').hidden")
    assert shown.browser.text("#troubles ul").splitlines() == [
        "daemonthe control loop has been silent for 1 min",
        "daemonnot ready yet: no snapshot of the leases in the kernel",
        "leaseno subnet is free",
        "fast pathattach: ENODEV",
        "probesnot sent: EADDRINUSE",
        "store2 records skipped so far, see the daemon's log",
    ]


def test_a_node_without_a_fast_path_or_peers_says_so(shown: Shown) -> None:
    shown.state = state_with([])
    shown.state["status"] |= {
        "fast_path": None,
        "datapath": {"mode": "netlink", "reason": "no bcc"},
    }
    shown.open()
    assert "netlink: no bcc" in shown.browser.text("#tiles")
    assert "not counted without a fast path" in shown.browser.text("#tiles")
    assert shown.browser.text("#map-words") == "No other node has a lease."
    assert "There is no fast path" in shown.browser.text("#share")
    assert shown.browser.complaints() == []


@pytest.mark.parametrize("count", [9, 100])
def test_nothing_is_wider_than_the_window(shown: Shown, count: int) -> None:
    shown.state = state_with([peer(number) for number in range(1, count)] + [silent(count, "in")])
    for width, height in ((1280, 800), (390, 844), (320, 568)):
        shown.open(width=width, height=height)
        assert shown.browser.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.browser.complaints() == []


def test_it_is_light_or_dark_as_the_reader_likes(shown: Shown, tmp_path: Path) -> None:
    shown.open()
    for scheme in ("light", "dark"):
        shown.browser.resize(1280, 800, dark=scheme == "dark")
        colours = shown.browser.colours()
        assert GROUND[scheme] in [colour for colour, _ in colours.most_common(3)]
        assert len(colours) > 100
    assert shown.browser.screenshot(tmp_path / "page.png").stat().st_size > 20_000


@pytest.fixture(scope="module")
def watched(module_cluster: Cluster) -> Cluster:
    """Give the module three nodes, a lease that nobody can use, and a page on the first node."""
    need_chromium()
    module_cluster.start_etcd()
    nodes = [module_cluster.add_node() for _ in range(3)]
    page = (f"--metrics-ip={HOST}", f"--metrics-port={PORT}", "--status-page")
    for node in nodes:
        node.daemon.start("--datapath=bpf", *(page if node is nodes[0] else ()))
    for node in nodes:
        node.add_pod()
        node.daemon.wait_ready()
    record = {"PublicIP": "198.18.0.99", "BackendType": HOSTILE}
    module_cluster.etcd.put(f"{SUBNETS}10.244.250.0-24", json.dumps(record))
    return module_cluster


def forge(cluster: Cluster, node: Node) -> None:
    """Send a VXLAN packet from where no node is."""
    inner = bytes(12) + b"\x08\x00\x45\x00\x00\x14" + bytes(4) + b"\x40\x11" + bytes(10)
    packet = b"\x08\x00\x00\x00\x00\x00\x01\x00" + inner

    def send() -> None:
        with socket(AF_INET, SOCK_DGRAM) as sender:
            sender.sendto(packet, (str(node.address), 8472))

    cluster.switch.call(send)


def test_a_live_daemons_page_shows_its_peers_traffic_and_forged_packets(
    watched: Cluster, tmp_path: Path
) -> None:
    one, two, three = watched.nodes
    source, target, _ = watched.pods
    with Browser(one.namespace, tmp_path / "browser") as page:
        page.resize(1280, 800)
        page.open(f"http://{HOST}:{PORT}/")
        page.wait(SHOWN)
        with udp_probe(source.namespace, target.namespace, target.address, rate=1000) as probe:
            probe.wait_flowing(500)
            forge(watched, one)
            fast = "document.querySelector('#tiles').innerText.match(/([0-9.]+) %/)?.[1]"
            wait_until(lambda: float(page.evaluate(fast) or 0) > 90, timeout=40, what="fast share")
            page.wait(f"document.querySelector('#forged').innerText.includes('1: {UNKNOWN}')")
            page.wait("/bit.s sent/.test(document.querySelector('#tiles').innerText)")
        rows = page.text("#peers tbody")
        assert {subnet_of(two), subnet_of(three)} <= {
            row.split("\t")[0] for row in rows.splitlines()
        }
        assert HOSTILE in rows
        assert page.count("#map .title") == 4
        assert page.text("#host")
        assert subnet_of(one) in page.text("#place")
        assert f"not admitted\t{WORDS[Verdict.NOT_ADMITTED]}\t" in page.text("#reasons")
        assert len(page.colours()) > 100
        assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000
        assert page.complaints() == []
        assert {url.split("/")[2] for url in page.requests() if url.startswith("http")} == {
            f"{HOST}:{PORT}"
        }
        one.daemon.stop()
        page.wait("document.querySelector('#pulse').className == 'lost'")
