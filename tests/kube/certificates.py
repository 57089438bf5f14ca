"""An authority, and a certificate each for the server (127.0.0.1) and a client, by openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Where the files are; each key lies beside its certificate."""

    ca: Path
    server: Path
    client: Path

    @property
    def client_key(self) -> Path:
        return self.client.with_suffix(".key")

    @property
    def server_key(self) -> Path:
        return self.server.with_suffix(".key")


def make_certificates(directory: Path) -> Certificates:
    directory.mkdir()
    ca = ("-x509", "-subj", "/CN=test authority", "-days", "2", "-out", "ca.pem")
    _openssl(directory, "req", *_NEW_KEY, "-keyout", "ca.key", *ca)
    for name in ("server", "client"):
        subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:api.test")
        request = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        _openssl(directory, "req", *_NEW_KEY, *subject, *request)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        files = ("-copy_extensions", "copy", "-in", f"{name}.csr", "-out", f"{name}.pem")
        _openssl(directory, "x509", "-req", *signed, *files)
    return Certificates(directory / "ca.pem", directory / "server.pem", directory / "client.pem")


def encrypt_key(key: Path, to: Path) -> Path:
    _openssl(to.parent, "pkey", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", str(to))
    return to


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
