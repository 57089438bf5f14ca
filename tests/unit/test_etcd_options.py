"""Endpoints and prefixes as an operator may write them."""

from pathlib import Path

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.subnets.etcd_options import (
    Endpoint,
    EtcdOptions,
    key_prefix,
    parse_endpoints,
    system_roots,
)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("http://127.0.0.1:4001", Endpoint("127.0.0.1", 4001, secure=False)),
        ("https://etcd-1.example:2379/", Endpoint("etcd-1.example", 2379, secure=True)),
        ("etcd:2380", Endpoint("etcd", 2380, secure=False)),
        ("10.0.0.1", Endpoint("10.0.0.1", 2379, secure=False)),
        (" http://[fd00::1]:2379", Endpoint("fd00::1", 2379, secure=False)),
        ("[fd00::1]:2379", Endpoint("fd00::1", 2379, secure=False)),
    ],
)
def test_endpoint_is_a_url_or_host_and_port(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoints(EtcdOptions(endpoints=(text,))) == (endpoint,)


def test_default_endpoints_are_flannels() -> None:
    endpoints = parse_endpoints(EtcdOptions())
    assert [str(x) for x in endpoints] == ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]


def test_an_endpoint_given_twice_counts_once() -> None:
    urls = ("http://a:1", "http://b:1", "a:1/", " http://a:1")
    endpoints = parse_endpoints(EtcdOptions(endpoints=urls))
    assert [str(each) for each in endpoints] == ["http://a:1", "http://b:1"]


def test_endpoint_without_scheme_is_secure_if_a_tls_file_is_given() -> None:
    options = EtcdOptions(endpoints=("etcd:2379", "https://b:1"), cafile=Path("ca.pem"))
    assert all(endpoint.secure for endpoint in parse_endpoints(options))


@pytest.mark.parametrize(
    "endpoints",
    [
        (),
        ("", " "),
        ("http://a:1", "https://b:1"),
        ("a:1", "https://b:1"),
        ("http://a:port",),
        ("http://a:70000",),
        ("unix:///run/etcd.sock",),
        ("http://",),
        ("http://user:secret@a:1",),
        ("http://a:1/v3",),
        ("http://[fd00::1:2379",),
    ],
)
def test_bad_endpoints_are_refused_by_name(endpoints: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInputError, match="etcd-endpoints"):
        parse_endpoints(EtcdOptions(endpoints=endpoints))


@pytest.mark.parametrize("field", ["certfile", "keyfile"])
def test_half_a_client_certificate_is_refused(field: str) -> None:
    with pytest.raises(InvalidInputError, match="both or neither"):
        parse_endpoints(EtcdOptions(**{field: Path("x.pem")}))  # type: ignore[arg-type]  # a path


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("/coreos.com/network", "/coreos.com/network"), ("//a//b/", "/a/b"), ("a", "a"), ("/", "")],
)
def test_prefix_has_single_slashes_and_none_at_its_end(prefix: str, expected: str) -> None:
    assert key_prefix(EtcdOptions(prefix=prefix)) == expected


@pytest.mark.parametrize("password", ["open sesame"])
def test_password_is_not_in_the_text_of_the_options(password: str) -> None:
    assert password not in repr(EtcdOptions(username="u", password=password))


def test_first_existing_file_of_roots_is_taken(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.touch()
    assert system_roots([None, str(tmp_path / "none"), str(tmp_path), str(roots)]) == roots
    with pytest.raises(InvalidInputError, match="etcd-cafile"):
        system_roots([None])
