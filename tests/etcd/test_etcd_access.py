"""Login and TLS against a real etcd that demands them."""

import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from etcd.bench import Bench, make_claim, make_lease
from etcd.etcd_server import EtcdServer, b64
from etcd.following import Following
from kersey_control.errors import InvalidInputError, StoreAuthError, StoreUnavailableError
from kersey_control.events import Changed, Lost, Restored
from kersey_control.netconfig import NetworkConfig
from kersey_control.subnets.etcd import EtcdOptions, EtcdStore
from testbed.waiting import wait_until

USER, PASSWORD = "kersey", "let me in"


@pytest.fixture
def guarded(own_bench: Bench) -> Bench:
    """Switch authentication on; `kersey` may use the bench's prefix and nothing else."""
    server = own_bench.server
    for name in ("root", USER):
        server.call("auth/user/add", {"name": name, "password": PASSWORD})
        server.call("auth/role/add", {"name": name})
        server.call("auth/user/grant", {"user": name, "role": name})
    permit(own_bench, "READWRITE")
    server.call("auth/enable", {})
    server.login(name="root", password=PASSWORD)
    own_bench.options = replace(own_bench.options, username=USER, password=PASSWORD)
    return own_bench


def permit(bench: Bench, kind: str) -> None:
    """Let `kersey` read, or read and write, what is under the bench's prefix."""
    prefix = bench.options.prefix
    permission = {"permType": kind, "key": b64(prefix), "range_end": b64(prefix + "z")}
    bench.server.call("auth/role/grant", {"name": USER, "perm": permission})


def test_login_gives_access_to_everything_a_node_does(
    guarded: Bench, config: NetworkConfig
) -> None:
    with EtcdStore(guarded.options) as store, Following(store) as following:
        own = store.renew(store.acquire(make_claim(), config), make_claim())
        following.wait_for(lambda: len(following.of(Changed)) == 2)
        assert guarded.server.lease_ids() == {guarded.etcd_lease_of(own.lease)}


def _restart_without_tokens(guarded: Bench) -> None:
    """Start etcd anew so that it knows no token of ours any more.

    A plain restart is not enough: etcd gets tokens back from its log as long as they are in it.
    """
    with guarded.server.elsewhere():
        guarded.server.login(name="root", password=PASSWORD)
        guarded.server.call("auth/user/changepw", {"name": USER, "password": PASSWORD})
    guarded.server.start()
    guarded.server.login(name="root", password=PASSWORD)


def test_watch_logs_in_again_after_a_restart_of_etcd_that_lost_its_token(
    guarded: Bench,
) -> None:
    with EtcdStore(guarded.options) as store, Following(store) as following:
        guarded.server.kill()
        following.wait_for_kind(Lost)
        _restart_without_tokens(guarded)
        following.wait_for_kind(Restored)
        guarded.put_lease(make_lease(1))
        following.wait_for(lambda: make_lease(1).subnet in following.state)


def test_call_logs_in_again_after_a_restart_of_etcd_that_lost_its_token(
    guarded: Bench, config: NetworkConfig
) -> None:
    with EtcdStore(guarded.options) as store:
        own = store.acquire(make_claim(), config)
        guarded.server.kill()
        _restart_without_tokens(guarded)
        wait_until(lambda: _is_available(store), timeout=10, what="the connection is back")
        assert store.renew(own, make_claim()).lease == own.lease


def test_call_logs_in_again_when_a_token_becomes_invalid_on_the_way(
    guarded: Bench, config: NetworkConfig
) -> None:
    with EtcdStore(guarded.options) as store:
        own = store.acquire(make_claim(), config)
        guarded.server.call("auth/user/changepw", {"name": USER, "password": PASSWORD})
        assert store.renew(own, make_claim()).lease == own.lease


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"password": "wrong"}, id="wrong password"),
        pytest.param({"username": "", "password": ""}, id="no login"),
        pytest.param({"prefix": "/elsewhere"}, id="no permission"),
    ],
)
def test_refused_credentials_are_an_auth_error_and_do_not_end_the_watch(
    guarded: Bench, options: dict[str, str]
) -> None:
    with EtcdStore(replace(guarded.options, **options)) as store:  # type: ignore[arg-type]  # str
        with pytest.raises(StoreAuthError):
            store.read_config()
        with Following(store) as following:
            assert following.kinds() == ["Lost"]


def test_permission_taken_away_and_given_back_is_an_outage_and_its_end(guarded: Bench) -> None:
    grant = {"user": USER, "role": USER}
    with EtcdStore(guarded.options) as store, Following(store) as following:
        guarded.server.call("auth/user/revoke", {"name": USER, "role": USER})
        guarded.server.kill()
        following.wait_for_kind(Lost)
        guarded.server.start()
        guarded.server.login(name="root", password=PASSWORD)
        guarded.put_lease(make_lease(1))
        guarded.server.call("auth/user/grant", grant)
        following.wait_for_kind(Restored)
        following.wait_for(lambda: set(following.state) == {make_lease(1).subnet})
        assert following.kinds().count("Lost") == 1


def test_writes_without_permission_leave_no_etcd_lease_behind(
    guarded: Bench, config: NetworkConfig
) -> None:
    with EtcdStore(guarded.options) as store:
        own = store.acquire(make_claim(), config)
        held = {guarded.etcd_lease_of(own.lease)}
        permit(guarded, "READ")
        for _ in range(3):
            with pytest.raises(StoreAuthError, match="permission denied"):
                store.renew(own, make_claim())
            with pytest.raises(StoreAuthError, match="permission denied"):
                store.acquire(make_claim(201), config)
        assert guarded.server.lease_ids() == held
        permit(guarded, "READWRITE")
        store.renew(own, make_claim())


def test_login_on_an_etcd_without_authentication_is_not_an_error(
    bench: Bench, config: NetworkConfig
) -> None:
    options = replace(bench.options, username=USER, password=PASSWORD)
    with EtcdStore(options) as store:
        assert store.acquire(make_claim(), config).lease.subnet.prefixlen == 24


def _is_available(store: EtcdStore) -> bool:
    try:
        store.list_leases()
    except StoreUnavailableError:
        return False
    return True


@dataclass(frozen=True)
class Certificates:
    """One authority, and a certificate each for the server (127.0.0.1) and a client."""

    ca: Path
    server: Path
    client: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return _certify(tmp_path_factory.mktemp("tls"))


def _certify(directory: Path) -> Certificates:
    """Make all files anew, by an authority that has not signed anything else."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    ca = ["-x509", "-days", "2", "-subj", "/CN=test authority", "-out", "ca.pem"]
    _openssl(directory, "req", *new_key, "-keyout", "ca.key", *ca)
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        extension = ["-addext", f"extendedKeyUsage={usage}"]
        request = ["-keyout", f"{name}.key", "-out", f"{name}.csr"]
        _openssl(directory, "req", *new_key, *subject, *extension, *request)
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-copy_extensions", "copy"]
        files = ["-in", f"{name}.csr", "-out", f"{name}.pem"]
        _openssl(directory, "x509", "-req", *signed, *files)
    return Certificates(directory / "ca.pem", directory / "server.pem", directory / "client.pem")


def _key_of(files: Certificates) -> Path:
    return files.client.with_suffix(".key")


def _tls_server(data: Path, certificates: Certificates, *flags: str) -> EtcdServer:
    context = ssl.create_default_context(cafile=certificates.ca)
    context.load_cert_chain(certificates.client, certificates.client.with_suffix(".key"))
    pem = certificates.server
    files = (f"--cert-file={pem}", f"--key-file={pem.with_suffix('.key')}")
    return EtcdServer(data, flags=(*files, *flags), tls=context)


@pytest.fixture(scope="module")
def server_auth(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[EtcdServer]:
    with _tls_server(tmp_path_factory.mktemp("tls-etcd"), certificates) as server:
        yield server


@pytest.fixture(scope="module")
def client_auth(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[EtcdServer]:
    flags = ("--client-cert-auth", f"--trusted-ca-file={certificates.ca}")
    with _tls_server(tmp_path_factory.mktemp("tls-etcd"), certificates, *flags) as server:
        yield server


def test_ca_alone_is_enough_for_server_authentication(
    server_auth: EtcdServer, certificates: Certificates, config: NetworkConfig, prefix: str
) -> None:
    options = EtcdOptions(endpoints=(server_auth.url,), prefix=prefix, cafile=certificates.ca)
    with EtcdStore(options) as store, Following(store) as following:
        own = store.acquire(make_claim(), config)
        following.wait_for(lambda: following.of(Changed) == [Changed(own.lease)])


def test_system_roots_are_used_where_no_ca_is_given(
    server_auth: EtcdServer,
    certificates: Certificates,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = EtcdOptions(endpoints=(server_auth.url,), prefix=prefix)
    with EtcdStore(options) as store, pytest.raises(StoreUnavailableError):
        store.list_leases()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    with EtcdStore(options) as store:
        assert store.list_leases().leases == ()


def test_client_certificate_is_presented(
    client_auth: EtcdServer, certificates: Certificates, config: NetworkConfig, prefix: str
) -> None:
    options = EtcdOptions(
        endpoints=(client_auth.url,),
        prefix=prefix,
        cafile=certificates.ca,
        certfile=certificates.client,
        keyfile=certificates.client.with_suffix(".key"),
    )
    with EtcdStore(options) as store:
        assert store.acquire(make_claim(), config).lease.subnet.prefixlen == 24


def test_missing_client_certificate_is_refused_by_etcd(
    client_auth: EtcdServer, certificates: Certificates, prefix: str
) -> None:
    options = EtcdOptions(endpoints=(client_auth.url,), prefix=prefix, cafile=certificates.ca)
    with EtcdStore(options) as store, pytest.raises(StoreUnavailableError):
        store.list_leases()


def test_replaced_certificates_are_read_when_the_former_ones_are_refused(
    tmp_path: Path, config: NetworkConfig
) -> None:
    files = _certify(tmp_path)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(files.ca.read_bytes())
    flags = ("--client-cert-auth", f"--trusted-ca-file={trusted}")
    with _tls_server(tmp_path / "etcd", files, *flags) as server:
        options = EtcdOptions(
            endpoints=(server.url,),
            cafile=files.ca,
            certfile=files.client,
            keyfile=_key_of(files),
        )
        with EtcdStore(options) as store, Following(store) as following:
            own = store.acquire(make_claim(), config)
            following.wait_for(lambda: following.of(Changed) == [Changed(own.lease)])
            server.kill()
            trusted.write_bytes(_certify(tmp_path).ca.read_bytes())
            server.start()
            following.wait_for_kind(Restored)
            assert store.renew(own, make_claim()).lease == own.lease


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda files: files.client.unlink(), id="certificate is gone"),
        pytest.param(lambda files: files.client.write_bytes(b""), id="certificate is empty"),
        pytest.param(lambda files: _key_of(files).write_bytes(b""), id="key is empty"),
        pytest.param(lambda files: files.ca.write_bytes(b""), id="authority is empty"),
        pytest.param(
            lambda files: files.client.write_bytes(files.server.read_bytes()),
            id="certificate of another key",
        ),
    ],
)
def test_files_that_are_not_wholly_replaced_leave_the_former_in_use(
    tmp_path: Path, config: NetworkConfig, spoil: Callable[[Certificates], object]
) -> None:
    files = _certify(tmp_path)
    options = EtcdOptions(
        endpoints=("https://127.0.0.1:1",),
        cafile=files.ca,
        certfile=files.client,
        keyfile=_key_of(files),
    )
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(files.ca.read_bytes())
    flags = ("--client-cert-auth", f"--trusted-ca-file={trusted}")
    with _tls_server(tmp_path / "etcd", files, *flags) as server:
        dead = options.endpoints[0]
        with EtcdStore(replace(options, endpoints=(dead, server.url))) as store:
            own = store.acquire(make_claim(), config)
            good = {path: path.read_bytes() for path in (files.ca, files.client, _key_of(files))}
            spoil(files)
            server.kill()
            with pytest.raises(StoreUnavailableError):
                store.list_leases()
            for path, text in good.items():
                path.write_bytes(text)
            server.start()
            spoil(files)
            wait_until(lambda: _is_available(store), timeout=20, what="etcd answers again")
            assert store.renew(own, make_claim()).lease == own.lease
        with pytest.raises((InvalidInputError, StoreUnavailableError)):  # no sudden end, at least
            EtcdStore(replace(options, endpoints=(server.url,))).list_leases()


def test_unreadable_tls_file_is_named(tmp_path: Path) -> None:
    options = EtcdOptions(endpoints=("https://127.0.0.1",), cafile=tmp_path / "none.pem")
    with pytest.raises(InvalidInputError, match=r"none\.pem.*No such file"):
        EtcdStore(options)


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
