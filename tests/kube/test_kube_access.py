"""Where the API server is, who it is and who we are: flags, service account, kubeconfig, TLS."""

import base64
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from etcd.following import Following
from kersey_control.errors import InvalidInputError, StoreAuthError, StoreUnavailableError
from kersey_control.events import Changed, Lost
from kersey_control.netconfig import NetworkConfig
from kersey_control.subnets import kube_http
from kersey_control.subnets.kube import KubeOptions, KubeStore
from kersey_control.subnets.kube_access import find_access
from kube.api_server import ApiServer
from kube.certificates import Certificates, encrypt_key, make_certificates
from kube.members import NODE, cidr, join, make_claim

Json = dict[str, Any]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pki") / "first")


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[ApiServer]:
    """Run a server that shows a certificate and takes a client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.load_verify_locations(certificates.ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    with ApiServer(context) as server:
        server.put(NODE, cidr=cidr(200))
        yield server


@pytest.fixture
def in_cluster(secure: ApiServer, certificates: Certificates, tmp_path: Path) -> KubeOptions:
    """Lay out a service account as kubelet does."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes(certificates.ca.read_bytes())
    (account / "token").write_text("first\n")
    secure.tokens = {"first"}
    return KubeOptions(node=NODE, service=secure.address, service_account=account)


def kubeconfig(path: Path, server: str, *, user: Json, **cluster: Any) -> KubeOptions:
    """Write a kubeconfig (JSON is YAML) with a second, wrong entry of everything."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "right",
        "contexts": [
            {"name": "wrong", "context": {"cluster": "wrong", "user": "wrong"}},
            {"name": "right", "context": {"cluster": "c", "user": "u", "namespace": "x"}},
        ],
        "clusters": [
            {"name": "wrong", "cluster": {"server": "https://127.0.0.1:1"}},
            {"name": "c", "cluster": {"server": server, **cluster}},
        ],
        "users": [{"name": "wrong", "user": {}}, {"name": "u", "user": user}],
    }
    path.write_text(json.dumps(config))
    return KubeOptions(node=NODE, kubeconfig=path)


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_in_cluster_token_and_authority_are_used(
    in_cluster: KubeOptions, secure: ApiServer, config: NetworkConfig
) -> None:
    join(secure, 1)
    with KubeStore(in_cluster) as store, Following(store) as following:
        assert len(following.state) == 1
        store.acquire(make_claim(), config)
        following.wait_for_kind(Changed)
    assert {seen.authorization for seen in secure.requests} == {"Bearer first"}


def test_a_rotated_token_is_read_again(
    in_cluster: KubeOptions, secure: ApiServer, config: NetworkConfig
) -> None:
    with KubeStore(in_cluster) as store, Following(store) as following:
        store.acquire(make_claim(), config)
        (in_cluster.service_account / "token").write_text("second")
        secure.tokens = {"second"}
        store.acquire(make_claim(), config)
        secure.wait_for("streams", 1)
        secure.cut()
        secure.wait_for("watch", 2)
        join(secure, 1)
        following.wait_for_kind(Changed)
        assert not following.of(Lost)


def test_a_token_that_is_rotated_under_a_request_is_read_again(
    in_cluster: KubeOptions, secure: ApiServer
) -> None:
    secure.tokens = {"second"}
    token = in_cluster.service_account / "token"
    secure.when_unauthorized = lambda: token.write_text("second")
    with KubeStore(in_cluster) as store:
        assert store.remembered().backend_type == ""
    assert [seen.authorization for seen in secure.requests] == ["Bearer first", "Bearer second"]


def test_a_refused_token_and_a_missing_one_are_named(
    in_cluster: KubeOptions, secure: ApiServer
) -> None:
    secure.tokens = {"other"}
    token = in_cluster.service_account / "token"
    with KubeStore(in_cluster) as store:
        with pytest.raises(StoreAuthError, match="get nodes: HTTP 401 Unauthorized: Unauthorized"):
            store.remembered()
        assert len(secure.requests) == 1
        token.unlink()
        with pytest.raises(StoreAuthError, match=f"token {token}: .*No such file"):
            store.remembered()
        token.write_text("a\nb")
        with pytest.raises(StoreAuthError, match="got no token"):
            store.remembered()
        with Following(store) as following:
            assert following.kinds() == ["Lost"]
            token.write_text("other")
            following.wait_for(lambda: len(following.events) == 3)
            assert following.kinds() == ["Lost", "Restored", "Snapshot"]


def test_a_server_of_another_authority_is_not_talked_to(
    in_cluster: KubeOptions, secure: ApiServer, tmp_path: Path
) -> None:
    authority = in_cluster.service_account / "ca.crt"
    right = authority.read_bytes()
    authority.write_bytes(make_certificates(tmp_path / "other").ca.read_bytes())
    with KubeStore(in_cluster) as store:
        with pytest.raises(StoreUnavailableError, match="certificate verify failed"):
            store.remembered()
        assert not secure.requests
        authority.write_text("no certificate")
        with pytest.raises(StoreAuthError, match="TLS files: "):
            store.remembered()
        authority.write_bytes(right)  # rotated, without a restart of ours
        store.remembered()


@pytest.mark.parametrize("is_text", [False, True], ids=["files", "text"])
def test_kubeconfig_with_a_client_certificate(
    secure: ApiServer, certificates: Certificates, tmp_path: Path, *, is_text: bool
) -> None:
    certificate, key = certificates.client, certificates.client_key
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "client.pem").write_bytes(certificate.read_bytes())
    user = (
        {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
        if is_text
        else {"client-certificate": "client.pem", "client-key": str(key)}
    )
    trust = (
        {"certificate-authority-data": encoded(certificates.ca)}
        if is_text
        else {"certificate-authority": str(certificates.ca)}
    )
    options = kubeconfig(folder / "config", secure.url, user=user, **trust)
    secure._tls.verify_mode = ssl.CERT_REQUIRED  # type: ignore[union-attr]
    try:
        with KubeStore(options) as store:
            store.remembered()
        with (
            KubeStore(replace(options, kubeconfig=None, api_url=secure.url)) as store,
            pytest.raises(StoreUnavailableError),
        ):
            store.remembered()
    finally:
        secure._tls.verify_mode = ssl.CERT_OPTIONAL  # type: ignore[union-attr]


def test_an_encrypted_key_is_refused_and_no_password_asked_for(
    secure: ApiServer, certificates: Certificates, tmp_path: Path
) -> None:
    key = encrypt_key(certificates.client_key, tmp_path / "encrypted.key")
    user = {"client-certificate": str(certificates.client), "client-key": str(key)}
    trust = {"certificate-authority": str(certificates.ca)}
    with (
        KubeStore(kubeconfig(tmp_path / "config", secure.url, user=user, **trust)) as store,
        pytest.raises(StoreAuthError, match="TLS files: the client's key is encrypted"),
    ):
        store.remembered()


def test_kubeconfig_names_can_replace_the_hosts_and_checks_be_switched_off(
    secure: ApiServer, certificates: Certificates, tmp_path: Path
) -> None:
    trust = {"certificate-authority": str(certificates.ca)}
    path = tmp_path / "config"
    for name, works in (("api.test", True), ("other.test", False)):
        options = kubeconfig(path, secure.url, user={}, **trust, **{"tls-server-name": name})
        with KubeStore(options) as store:
            if works:
                store.remembered()
            else:
                with pytest.raises(StoreUnavailableError, match="Hostname mismatch"):
                    store.remembered()
    options = kubeconfig(path, secure.url, user={}, **{"insecure-skip-tls-verify": True})
    with KubeStore(options) as store:
        store.remembered()


@pytest.mark.parametrize(
    ("user", "header"),
    [
        ({"token": "abc"}, "Bearer abc"),
        ({"token": "abc", "tokenFile": "token"}, "Bearer from-file"),
        ({"username": "u", "password": "p:w"}, "Basic dTpwOnc="),
        ({}, ""),
    ],
)
def test_kubeconfig_credentials(api: ApiServer, tmp_path: Path, *, user: Json, header: str) -> None:
    (tmp_path / "token").write_text("from-file\n")
    with KubeStore(kubeconfig(tmp_path / "config", api.url, user=user)) as store:
        store.remembered()
    assert api.requests[0].authorization == header


def test_the_url_flag_wins_over_the_kubeconfig_and_keeps_its_credentials(
    api: ApiServer, tmp_path: Path
) -> None:
    options = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", user={"token": "abc"})
    with KubeStore(replace(options, api_url=api.url)) as store:
        store.remembered()
    assert api.requests[0].authorization == "Bearer abc"


def test_a_server_behind_a_path_is_asked_there(api: ApiServer, config: NetworkConfig) -> None:
    api.base = "/k8s/clusters/c-1/"
    with KubeStore(KubeOptions(node=NODE, api_url=api.url + api.base)) as store:
        store.acquire(make_claim(), config)
        with Following(store) as following:
            assert len(following.state) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"^--kubeconfig-file: got '.*config', expected a readable file \(No such file"),
        ("[1, 2", r"^--kubeconfig-file: .* expected a kubeconfig \("),
        ("[]", r"^--kubeconfig-file: .* expected a kubeconfig \(Expected `object`"),
        ("{}", r"current-context: got '', expected an entry of the file \(none is there\)"),
    ],
)
def test_a_kubeconfig_that_cannot_be_read_is_refused(
    tmp_path: Path, *, text: str | None, message: str
) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        KubeStore(KubeOptions(node=NODE, kubeconfig=path))


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({"exec": {"command": "aws"}}, {}, "config: exec: got 'an entry', expected none"),
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider: got"),
        ({"as": "root"}, {}, "config: as: got"),
        ({"token": "a\r\nX-Remote-User: root"}, {}, "config: token: got 'a text', .* one line"),
        ({}, {"proxy-url": "http://p"}, "proxy-url: got"),
        ({"client-certificate": "c.pem"}, {}, "client-certificate, client-key: got 'one of them'"),
        ({"client-certificate-data": "%%"}, {}, "client-certificate-data: got 'a text', .* base64"),
        ({}, {"server": "ftp://x"}, "config: server: got 'ftp://x', expected http"),
    ],
)
def test_what_a_kubeconfig_asks_for_and_we_cannot_do_is_refused(
    tmp_path: Path, *, user: Json, cluster: Json, message: str
) -> None:
    options = kubeconfig(tmp_path / "config", **{"server": "http://x", **cluster}, user=user)
    with pytest.raises(InvalidInputError, match=message):
        KubeStore(options)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://10.0.0.1", "http://10.0.0.1:80"),
        ("https://api.example/", "https://api.example:443"),
        ("https://[fd00::1]:6443/k8s/clusters/c-1/", "https://[fd00::1]:6443/k8s/clusters/c-1"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_urls_that_are_understood(url: str, text: str) -> None:
    assert str(find_access(KubeOptions(node=NODE, api_url=url))) == text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "https://",
        "http://x:99999",
        "http://x?a",
        "http://u@x",
        "http://[",
        "x:0",
        "http://a/b c",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^--kube-api-url: got"):
        find_access(KubeOptions(node=NODE, api_url=url))


def test_outside_of_a_cluster_something_must_be_said() -> None:
    with pytest.raises(InvalidInputError, match=r"^--kube-api-url: got '', expected the API"):
        find_access(KubeOptions(node=NODE))


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    user = {"token": "SECRET", "password": "SECRET", "username": "u"}
    access = find_access(kubeconfig(tmp_path / "config", "http://x", user=user))
    assert "SECRET" not in repr(access)


def test_a_server_that_is_slow_to_secure_a_connection_is_no_outage(
    in_cluster: KubeOptions, secure: ApiServer
) -> None:
    with KubeStore(in_cluster) as store:
        following = Following(store)
        with secure.hanging():
            following.thread.start()
            following.stop.wait(3 * kube_http.POLL)  # the span over which nothing comes
        following.wait_for(lambda: following.kinds() == ["Snapshot"])
        following.stop.set()
        following.thread.join(2)


def test_a_server_that_says_nothing_during_tls_does_not_hold_up_a_close(
    tmp_path: Path, certificates: Certificates
) -> None:
    trust = {"certificate-authority": str(certificates.ca)}
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel accepts, nobody answers
        secure = f"https://127.0.0.1:{mute.getsockname()[1]}"
        options = kubeconfig(tmp_path / "config", secure, user={}, **trust)
        with KubeStore(options) as store:
            following = Following(store)
            following.thread.start()
            following.stop.set()
            following.thread.join(2)
            assert not following.thread.is_alive()
            assert not following.events


def test_a_server_that_takes_no_connection_does_not_hold_up_a_close() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        address = full.getsockname()
        for _ in range(4):  # from here on the kernel drops what asks for a connection
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        with KubeStore(KubeOptions(node=NODE, api_url=f"http://127.0.0.1:{address[1]}")) as store:
            following = Following(store)
            following.thread.start()
            following.stop.wait(3 * kube_http.POLL)
            assert not following.events
            following.stop.set()
            following.thread.join(2)
            assert not following.thread.is_alive()
