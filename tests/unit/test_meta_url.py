"""metadb.url: what it may say, and that nothing falls back to plaintext by itself."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from distfs.commands.backup import _for_libpq
from distfs.errors import ConfigError
from distfs.metadb.url import Host, MetaURL


def test_a_url_names_user_password_host_port_and_database() -> None:
    url = MetaURL.parse("postgresql://anna:s%40cret@db.example:5433/files")
    assert url == MetaURL((Host("db.example", 5433),), "anna", "files", "s@cret")


def test_what_is_left_out_has_the_usual_meaning() -> None:
    assert MetaURL.parse("postgres://anna@") == MetaURL((Host("localhost", 5432),), "anna", "anna")


def test_several_hosts_keep_their_order() -> None:
    url = MetaURL.parse("postgresql://anna@a:1,b,[::1]:3/files")
    assert url.hosts == (Host("a", 1), Host("b", 5432), Host("::1", 3))


def test_a_unix_socket_is_named_by_its_folder() -> None:
    url = MetaURL.parse("postgresql://anna@/files?host=/run/my%20postgres&port=5433")
    assert [host.socket_path for host in url.hosts] == ["/run/my postgres/.s.PGSQL.5433"]


def test_printing_a_url_shows_no_password() -> None:
    url = MetaURL.parse("postgresql://anna:secret@db:5433/files")
    assert str(url) == "anna@db:5433/files"
    assert "secret" not in repr(url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://anna:secret@db/files", "must look like postgresql://"),
        ("", "must look like postgresql://"),
        ("postgresql://db/files", "names no user"),
        ("postgresql://anna:secret@db:port/files", "is not host:port"),
        ("postgresql://anna:secret@db:0/files", "is not host:port"),
        ("postgresql://anna:secret@a,,b/files", "is not host:port"),
        (
            "postgresql://anna:secret@db/files?sslmode=prefer",
            "sslmode 'prefer' is not one of disable, require",
        ),
        ("postgresql://anna:secret@db/files?ssl=on", "unknown parameter 'ssl'; known: host, port"),
        ("postgresql://anna:sec?ret=secret@db/files", r"write \? as %3F"),
        ("postgresql://anna:x?secret@db/files?sslmode=require", r"write \? as %3F"),
        ("postgresql://anna:x?sslmode=secret@db/files", r"write \? as %3F"),
        ("postgresql://anna:secret/x@db/files?user=anna", "is not host:port; in a password, write / as %2F"),
        ("postgresql://anna@db/files?password=secret&ssl=on", "unknown parameter 'ssl'"),
        ("postgresql://anna@db/files?pass-secret=1", "unknown parameter;"),
        ("postgresql://anna:secret@db/files?sslrootcert=/no/such/file", "/no/such/file is not a file"),
        ("postgresql://anna:secret@db/files?sslcrl=/no/such/file", "sslcrl /no/such/file is not a file"),
        (f"postgresql://anna:secret@db/files?sslcert={__file__}", "sslcert and sslkey go together"),
    ],
)
def test_a_url_that_is_wrong_says_where_without_the_password(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        MetaURL.parse(url)
    assert "secret" not in str(caught.value)


def context(query: str, host: str = "db") -> ssl.SSLContext | bool:
    url = MetaURL.parse(f"postgresql://anna@{host}/files{query}")
    return url.ssl_context(url.hosts[0])


@pytest.mark.parametrize("query", ["", "?sslmode=require", "?sslmode=verify-full"])
def test_another_machine_is_spoken_to_by_tls(query: str) -> None:
    assert isinstance(context(query), ssl.SSLContext)


def test_only_verify_full_proves_the_name_of_the_server() -> None:
    verified, encrypted = context("?sslmode=verify-full"), context("?sslmode=require")
    assert isinstance(verified, ssl.SSLContext)
    assert isinstance(encrypted, ssl.SSLContext)
    assert (verified.verify_mode, verified.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (encrypted.verify_mode, encrypted.check_hostname) == (ssl.CERT_NONE, False)


def test_who_says_nothing_of_another_machine_has_it_prove_its_name() -> None:
    asked_nothing = context("")
    assert isinstance(asked_nothing, ssl.SSLContext)
    assert (asked_nothing.verify_mode, asked_nothing.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_certificates_that_prove_nothing_are_not_read(tmp_path: Path) -> None:
    """Every connection would take 40 ms of processor time to read the system's; a file is read when it counts."""
    (no_certificate := tmp_path / "root.pem").write_text("nothing")
    encrypted = context(f"?sslmode=require&sslrootcert={no_certificate}")
    assert isinstance(encrypted, ssl.SSLContext)
    assert encrypted.cert_store_stats()["x509"] == 0
    with pytest.raises(ConfigError, match="sslrootcert: .*root.pem does not hold certificates"):
        context(f"?sslmode=verify-full&sslrootcert={no_certificate}")


def test_plaintext_is_for_this_machine_or_asked_for() -> None:
    assert context("?sslmode=disable") is False
    assert context("", host="127.0.0.1") is False
    assert context("", host="localhost:5433") is False
    assert context("?host=/run/postgresql") is False
    assert isinstance(context("?sslmode=require", host="127.0.0.1"), ssl.SSLContext)


def test_a_password_after_the_question_mark_is_used_and_not_shown() -> None:
    url = MetaURL.parse("postgresql://anna@db/files?password=a%3Fsecret")
    assert url.password == "a?secret"
    assert "secret" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    ("url", "mode", "root"),
    [
        ("postgresql://u@db.example/d", "verify-full", "system"),
        ("postgresql://u@127.0.0.1/d", "disable", None),
        ("postgresql://u@/d?host=/run/postgresql", "disable", None),
        ("postgresql://u@127.0.0.1,db.example/d", "verify-full", "system"),
        ("postgresql://u@db.example/d?sslmode=verify-full", "verify-full", "system"),
    ],
)
def test_postgresql_s_own_programs_are_told_to_use_tls_as_we_do(
    url: str, mode: str, root: str | None
) -> None:
    """libpq's own default goes on in plain text when the server has no TLS."""
    told = _for_libpq(MetaURL.parse(url))
    assert (told["PGSSLMODE"], told.get("PGSSLROOTCERT")) == (mode, root)
