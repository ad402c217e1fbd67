"""Certificates for tests: of a real authority, and wrong ones of each kind."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from distfs.config.settings import Certificate, TlsConfig, TlsMode
from distfs.tls import authority
from distfs.tls.authority import Authority

CLUSTER = UUID("c1c1c1c1-0000-4000-8000-000000000001")


@contextmanager
def at(when: datetime) -> Iterator[None]:
    """The clock of whoever signs stands there."""

    real, authority._now = authority._now, lambda: when
    try:
        yield
    finally:
        authority._now = real


class Certificates:
    """An authority in a folder, and what goes wrong with certificates."""

    def __init__(self, folder: Path, cluster: UUID = CLUSTER) -> None:
        self.folder = folder
        self.authority = Authority.make(folder, cluster)

    def service(self, name: str = "service", *hosts: str) -> Certificate:
        cert = self.authority.sign_service(name, hosts or ("localhost", "127.0.0.1"))
        return Certificate(str(cert), str(cert.with_suffix(".key")))

    def node(self, node: UUID) -> Certificate:
        cert = self.authority.sign_node(node, ())
        return Certificate(str(cert), str(cert.with_suffix(".key")))

    def wrong(
        self, what: str, node: UUID | None = None, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    ) -> Certificate:
        """A certificate for ``node``, or else a service, with one thing wrong."""
        now, made = datetime.now(UTC), self.authority
        when = {"expired": now - timedelta(days=400), "not yet valid": now + timedelta(days=2)}.get(what, now)
        if what in ("wrong CA", "self-signed"):
            made = Authority.make(self.folder / what.replace(" ", "-"), made.cluster)
        if what == "self-signed":
            return Certificate(str(made.folder / "ca.crt"), str(made.folder / "ca.key"))
        if what == "wrong cluster":  # of an authority that is believed all the same
            made = Authority(self.folder)
            made.cluster = uuid4()
        if what == "wrong host":
            node, hosts = node and uuid4(), ("elsewhere.example",)
        with at(when):
            name = f"wrong-{uuid4()}"
            for old in made.folder.glob(f"node-{node}.*"):
                old.unlink()
            cert = made.sign_node(node, hosts) if node else made.sign_service(name, hosts)
        if what == "revoked":
            made.revoke(cert.name)
        return Certificate(str(cert), str(cert.with_suffix(".key")))

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.crt")

    @property
    def crl(self) -> str:
        return str(self.folder / "crl.pem")

    def peers(self, own: Certificate) -> TlsConfig:
        """Of a part that has ``own``, without HTTPS."""
        return TlsConfig(ca=self.ca, cert=own.cert, key=own.key, crl=self.crl)

    def https(self, *certificates: Certificate) -> TlsConfig:
        return TlsConfig(mode=TlsMode("on"), certificates=certificates)

    def client(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client that believes this authority alone."""
        context = ssl.create_default_context(cafile=self.ca)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


def replace_pair(old: Certificate, new: Certificate) -> None:
    """As an operator does: each file by a rename."""
    for source, target in ((new.key, old.key), (new.cert, old.cert)):
        fresh = Path(target).with_suffix(".fresh")
        shutil.copy(source, fresh)
        fresh.rename(target)
