"""MetaDB under TLS, by a real PostgreSQL that has it: whom we believe, whom it believes, and who reads on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from distfs.config.settings import Certificate, MetaDBConfig
from distfs.errors import Unavailable
from distfs.meta import MetaDB
from distfs.tls import contexts
from tests.certificates import Certificates
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, soon
from tests.recorder import Recorder
from tests.tls_postgres import TlsPostgres, tls_postgres


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def own(certificates: Certificates) -> Certificate:
    return certificates.service("client")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TlsPostgres]:
    """It takes only who has a certificate."""
    folder = tmp_path_factory.mktemp("postgres") / "x"
    with tls_postgres(
        folder, certificates, certificates.service("postgres", "localhost"), demands=True
    ) as running:
        yield running


def meta(url: str) -> MetaDB:
    return MetaDB(MetaDBConfig(url=url))


def queries(certificates: Certificates, own: Certificate) -> str:
    return f"sslmode=verify-full&sslrootcert={certificates.ca}&sslcert={own.cert}&sslkey={own.key}"


def test_both_are_proved_and_nobody_reads_on_the_way(
    server: TlsPostgres, certificates: Certificates, own: Certificate
) -> None:
    with Recorder("127.0.0.1", server.port) as tap:
        url = server.url(queries(certificates, own)).replace(str(server.port), str(tap.port))
        with closing(meta(url)) as one:
            one.migrate()
            file = new_file((1,) * 100)
            one.commit_files([file], soon())
            assert one.file(file.id, soon()).slices == file.slices
        assert len(tap.seen) > 10_000
        assert not tap.read(b"SELECT", b"commit_file", file.id.bytes, b"distfs")


def test_who_has_no_certificate_is_refused(
    server: TlsPostgres, certificates: Certificates, own: Certificate
) -> None:
    for query in (f"sslmode=verify-full&sslrootcert={certificates.ca}", "sslmode=disable"):
        with closing(meta(server.url(query))) as one, pytest.raises(Unavailable):
            one.ping(soon())


def test_another_name_than_its_own_is_refused(
    server: TlsPostgres, certificates: Certificates, own: Certificate
) -> None:
    url = server.url(queries(certificates, own), host="127.0.0.1")
    with closing(meta(url)) as one, pytest.raises(Unavailable, match="certificate verify failed.*mismatch"):
        one.ping(soon())


@pytest.mark.parametrize(
    "what", ["expired", "not yet valid", "wrong host", "wrong CA", "self-signed", "revoked"]
)
def test_no_wrong_server_is_believed(tmp_path: Path, what: str) -> None:
    certificates = Certificates(tmp_path / "ca")
    wrong = certificates.wrong(what, hosts=("localhost",))
    with tls_postgres(tmp_path / "postgres", certificates, wrong) as server:
        query = f"sslmode=verify-full&sslrootcert={certificates.ca}&sslcrl={certificates.crl}"
        with closing(meta(server.url(query))) as one:
            with pytest.raises(
                Unavailable, match=r"certificate verify failed: .*; metadb\.url says"
            ) as caught:
                one.ping(soon())
        assert len(str(caught.value).splitlines()) == 1
        with closing(meta(server.url("sslmode=require"))) as one:
            one.migrate()  # nothing else is wrong with it


def test_a_new_certificate_of_ours_is_taken_for_the_next_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "LOOK_EVERY_S", 0.05)
    certificates = Certificates(tmp_path / "ca")
    other = Certificates(tmp_path / "other")
    own = other.service("client")  # which the server does not know
    with tls_postgres(tmp_path / "postgres", certificates, certificates.service(), demands=True) as server:
        with closing(meta(server.url(queries(certificates, own)))) as one:
            with pytest.raises(Unavailable):
                one.ping(soon())
            right = certificates.service("right")
            for mine, its in ((own.key, right.key), (own.cert, right.cert)):
                Path(mine).write_bytes(Path(its).read_bytes())

            def taken() -> bool:
                try:
                    one.migrate()
                except Unavailable:
                    return False
                return True

            eventually(taken, "it is let in")
