"""/metrics over HTTP and HTTPS, and clients that do not behave."""

import gzip
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.flags import UsageError
from kersey_control.metrics import server as server_module
from kersey_control.metrics.certificates import Certificates
from kersey_control.metrics.resource import Resource
from kersey_control.metrics.server import (
    CONTENT_TYPE,
    MetricsServer,
    serve_metrics,
)
from kersey_control.options import Options, parse_options
from kersey_control.status import Status
from kersey_control.told import ToldOptions
from tls_authority import Authority

PAGE = b"kersey_ready 1\n" * 100
TOLD = ToldOptions()
HOST = "127.0.0.1"
NO_ANSWER = r"closed|reset"
NO_ENTRY = rf"{NO_ANSWER}|certificate|alert|EOF"


def at_metrics(make: Callable[[], bytes] = lambda: PAGE) -> dict[str, Resource]:
    return {"/metrics": Resource(make, CONTENT_TYPE)}


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer(at_metrics(), address=HOST, port=0) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def get(
    server: MetricsServer,
    *,
    path: str = "/metrics",
    context: ssl.SSLContext | None = None,
    accept: str = "identity",
    method: str = "GET",
) -> Answer:
    return fetch(server.port, path=path, context=context, accept=accept, method=method)


def fetch(
    port: int,
    *,
    path: str,
    context: ssl.SSLContext | None = None,
    accept: str = "identity",
    method: str = "GET",
) -> Answer:
    """Return what is answered; raises OSError where nothing is."""
    connection = (
        http.client.HTTPConnection(HOST, port, timeout=10)
        if context is None
        else http.client.HTTPSConnection(HOST, port, timeout=10, context=context)
    )
    with closing(connection):
        connection.request(method, path, headers={"Accept-Encoding": accept})
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read())


def silent(server: MetricsServer) -> socket.socket:
    return socket.create_connection((HOST, server.port), timeout=10)


def test_the_page_is_plain_or_compressed_as_the_client_understands(server: MetricsServer) -> None:
    plain = get(server)
    assert (plain.status, plain.body) == (200, PAGE)
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    packed = get(server, accept="deflate, gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == PAGE


def test_other_paths_are_not_found(server: MetricsServer) -> None:
    assert get(server, path="/metrics?x=1").status == 200
    answer = get(server, path="/")
    assert answer.status == 404
    assert b"/metrics" in answer.body


def test_head_tells_what_get_would_without_the_body(server: MetricsServer) -> None:
    with socket.create_connection((HOST, server.port), timeout=10) as client:
        client.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"Content-Length: %d" % len(PAGE) in head
    assert body == b""
    assert get(server, path="/", method="HEAD").status == 404


def test_nothing_can_be_written(server: MetricsServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, method=method).status == 501


def test_the_whole_daemons_page_is_served_before_anything_is_known() -> None:
    with serving() as port:
        text = fetch(port, path="/metrics").body.decode()
    assert "kersey_build_info" in text
    assert "kersey_process_resident_memory_bytes" in text
    assert "python_gc" not in text


@contextmanager
def serving(**options: Any) -> Iterator[int]:
    """Serve a daemon that knows nothing yet at the port that is returned."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with serve_metrics(Status(), Options(metrics_ip=HOST, metrics_port=port, **options), TOLD):
        yield port


STATUS_PAGE = {
    "/": "text/html; charset=utf-8",
    "/page/page.css": "text/css; charset=utf-8",
    "/page/page.js": "text/javascript; charset=utf-8",
    "/status.json": "application/json",
}


def test_the_status_page_is_there_only_where_it_is_asked_for() -> None:
    with serving() as port:
        assert {fetch(port, path=path).status for path in STATUS_PAGE} == {404}
    with serving(status_page=True) as port:
        assert fetch(port, path="/metrics").status == 200
        found = {path: fetch(port, path=path) for path in STATUS_PAGE}
        assert fetch(port, path="/page/index.html").status == 404
        assert fetch(port, path="/page/../status_page.py").status == 404
    assert {path: answer.headers["Content-Type"] for path, answer in found.items()} == STATUS_PAGE
    assert {answer.status for answer in found.values()} == {200}
    assert json.loads(found["/status.json"].body)["peers"] == []


def test_what_the_page_links_to_is_there() -> None:
    with serving(status_page=True) as port:
        page = fetch(port, path="/").body.decode()
        linked = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page)
        scripts = [path for path in linked if path.endswith(".js")]
        imports = {
            f"page/{name}"
            for script in (*scripts, "page/charts.js", "page/tables.js", "page/map.js")
            for name in re.findall(r'from "\./(.+)"', fetch(port, path=f"/{script}").body.decode())
        }
        assert len(imports) > 5
        for path in (*linked, *imports):
            assert fetch(port, path=f"/{path}").status == 200, path


def test_browsers_are_told_to_run_load_and_frame_nothing_else() -> None:
    with serving(status_page=True) as port:
        for path in STATUS_PAGE:
            headers = fetch(port, path=path).headers
            policy = headers["Content-Security-Policy"].split("; ")
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in headers


def test_the_status_page_needs_a_port() -> None:
    with pytest.raises(UsageError, match="--status-page: expected --metrics-port beside it"):
        parse_options(["--status-page"], {})
    assert parse_options(["--status-page", "--metrics-port=9475"], {}).status_page


def test_pages_are_made_on_one_thread_whoever_asks() -> None:
    makers = set()

    def page() -> bytes:
        makers.add(threading.get_ident())
        return PAGE

    with (
        MetricsServer(at_metrics(page), address=HOST, port=0) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = list(clients.map(lambda _: get(server).status, range(24)))
    assert answers == [200] * 24
    assert len(makers) == 1


def test_a_taken_port_is_refused_by_name(server: MetricsServer) -> None:
    with (
        pytest.raises(InvalidInputError, match="metrics-port"),
        MetricsServer(at_metrics(), address=HOST, port=server.port),
    ):
        pass


def test_closing_frees_the_port(server: MetricsServer) -> None:
    port = server.port
    server.__exit__(None, None, None)
    with MetricsServer(at_metrics(), address=HOST, port=port) as again:
        assert get(again).status == 200


def test_a_page_that_fails_is_logged_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pages = [PAGE]
    with MetricsServer(at_metrics(pages.pop), address=HOST, port=0) as server:
        assert get(server).status == 200
        with pytest.raises(OSError, match=NO_ANSWER):
            get(server)
        pages.append(PAGE)
        assert get(server).status == 200
    assert "request failed" in caplog.text


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority", address=HOST)


@pytest.fixture
def secured(authority: Authority) -> Iterator[MetricsServer]:
    certfile, keyfile = authority.issue("server")
    certificates = Certificates(certfile=certfile, keyfile=keyfile, cafile=None)
    with MetricsServer(at_metrics(), address=HOST, port=0, certificates=certificates) as running:
        yield running


def test_the_page_comes_by_tls_and_only_by_tls(
    secured: MetricsServer, authority: Authority
) -> None:
    assert get(secured, context=authority.client()).body == PAGE
    with pytest.raises(OSError, match=NO_ANSWER):
        get(secured)


def test_a_client_that_never_begins_its_handshake_holds_up_nobody(
    secured: MetricsServer, authority: Authority
) -> None:
    with silent(secured):
        assert get(secured, context=authority.client()).status == 200


def test_a_client_that_never_begins_its_handshake_is_let_go(
    secured: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_PATIENCE", 0.1)
    with silent(secured) as client:
        assert client.recv(1) == b""


def test_clients_show_a_certificate_where_an_authority_for_them_is_given(
    authority: Authority, tmp_path: Path
) -> None:
    certfile, keyfile = authority.issue("server")
    certificates = Certificates(certfile=certfile, keyfile=keyfile, cafile=authority.certfile)
    stranger = Authority(tmp_path / "stranger", address=HOST).issue("client")
    with MetricsServer(at_metrics(), address=HOST, port=0, certificates=certificates) as server:
        known = authority.client(certificate=authority.issue("client"))
        assert get(server, context=known).body == PAGE
        for context in (authority.client(), authority.client(certificate=stranger)):
            with pytest.raises(OSError, match=NO_ENTRY):
                get(server, context=context)


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_never(
    authority: Authority, tmp_path: Path, secured: MetricsServer
) -> None:
    certfile, keyfile = authority.directory / "server.crt", authority.directory / "server.key"
    certfile.write_text("no certificate")
    assert get(secured, context=authority.client()).status == 200
    successor = Authority(tmp_path / "successor", address=HOST)
    for source, target in zip(successor.issue("server"), (certfile, keyfile), strict=True):
        source.replace(target)
    assert get(secured, context=successor.client()).status == 200
    with pytest.raises(ssl.SSLError):
        get(secured, context=authority.client())


@pytest.mark.parametrize("broken", ["certfile", "keyfile", "cafile"])
def test_unusable_files_are_refused_at_the_start_by_name(
    authority: Authority, tmp_path: Path, broken: str
) -> None:
    certfile, keyfile = authority.issue("server")
    usable = Options(
        metrics_ip=HOST,
        metrics_certfile=certfile,
        metrics_keyfile=keyfile,
        metrics_cafile=authority.certfile,
    )
    for bad in (tmp_path / "absent", tmp_path):
        options = replace(usable, **{f"metrics_{broken}": bad})  # type: ignore[arg-type]
        with (
            pytest.raises(InvalidInputError, match=rf"metrics-{broken}.*{bad.name}"),
            serve_metrics(Status(), options, TOLD),
        ):
            pass


def test_each_flag_names_the_one_that_it_needs() -> None:
    for flag, needed in (("certfile", "keyfile"), ("keyfile", "certfile"), ("cafile", "certfile")):
        with pytest.raises(Exception, match=rf"--metrics-{flag}: .*--metrics-{needed} beside it"):
            parse_options([f"--metrics-{flag}=/x"], {})
