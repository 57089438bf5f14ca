"""Certificates of a test's own, in files, made by openssl."""

import ssl
import subprocess
from pathlib import Path


class Authority:
    """An authority in a directory that it makes, for servers and clients at one address."""

    def __init__(self, directory: Path, *, address: str) -> None:
        self.directory = directory
        self._address = address
        directory.mkdir()
        self.certfile, self.keyfile = directory / "ca.crt", directory / "ca.key"
        self._run(*self._new("ca", "authority"), "-x509", "-out", str(self.certfile))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return a new certificate and its key."""
        request, certfile = self.directory / f"{name}.csr", self.directory / f"{name}.crt"
        extensions = self.directory / "extensions"
        extensions.write_text(f"subjectAltName=IP:{self._address}\n")
        self._run(*self._new(name, name), "-out", str(request))
        self._run(
            *("x509", "-req", "-days", "2", "-in", str(request), "-out", str(certfile)),
            *("-CA", str(self.certfile), "-CAkey", str(self.keyfile), "-CAcreateserial"),
            *("-extfile", str(extensions)),
        )
        return certfile, self.directory / f"{name}.key"

    def _new(self, name: str, subject: str) -> tuple[str, ...]:
        key = str(self.directory / f"{name}.key")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        return ("req", *curve, "-nodes", "-subj", f"/CN={subject}", "-keyout", key)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def client(self, *, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return a context that trusts this authority alone, and may show a certificate."""
        context = ssl.create_default_context(cafile=str(self.certfile))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context
