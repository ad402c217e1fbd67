"""The password of MetaDB: which of those that are given counts, and what becomes of a file that has none."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from distfs.config import file as config_file
from distfs.config.settings import Config, MetaDBConfig, Secret
from distfs.errors import ConfigError
from distfs.meta import MetaDB
from distfs.metadb.url import MetaURL

URL = "postgresql://anna@db/files"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("of the file\n")
    path.chmod(0o600)
    return path


def test_the_urls_counts_then_the_configurations_then_the_files(file: Path) -> None:
    def counts(url: str, password: str = "") -> str:
        return MetaURL.of(MetaDBConfig(url, Secret(password), str(file))).password

    assert counts("postgresql://anna:of-the-url@db/files", "given") == "of-the-url"
    assert counts(f"{URL}?password=of-the-url", "given") == "of-the-url"
    assert counts(URL, "given") == "given"
    assert counts(URL) == "of the file"
    assert counts("postgresql://anna:@db/files") == "of the file"
    assert MetaURL.of(MetaDBConfig(URL)).password == ""


def test_the_environment_names_both(tmp_path: Path, file: Path) -> None:
    (tmp_path / "config.yml").touch()

    def load(**environ: str) -> Config:
        return config_file.load(str(tmp_path / "config.yml"), {"DISTFS_METADB_URL": URL, **environ})

    text = "0123: {p@ss} #word"
    assert MetaURL.of(load(DISTFS_METADB_PASSWORD=text).metadb).password == text
    assert MetaURL.of(load(DISTFS_METADB_PASSWORD_FILE=str(file)).metadb).password == "of the file"
    with pytest.raises(ConfigError, match="did you mean DISTFS_METADB_PASSWORD"):
        load(DISTFS_METADB_PASSWRD="secret")


def test_a_password_is_in_no_text_about_the_configuration(file: Path) -> None:
    config = MetaDBConfig("postgresql://anna:secret@db/files", Secret("secret"), str(file))
    assert "secret" not in f"{config} {config!r} {Config(metadb=config)}"


@pytest.mark.parametrize(
    ("data", "ending"),
    [(b"a b", ""), (b"a b", "\n"), (b"a b", "\r\n"), ("pä\u00dfword".encode(), "\n"), (b" a ", "\n")],
)
def test_the_line_break_at_a_files_end_is_no_part_of_it(file: Path, data: bytes, ending: str) -> None:
    file.write_bytes(data + ending.encode())
    assert MetaURL.of(MetaDBConfig(URL, password_file=str(file))).password.encode() == data


def test_a_file_that_changes_counts_at_the_next_connect(file: Path) -> None:
    meta = MetaDB(MetaDBConfig(URL, password_file=str(file)))
    assert meta._where().password == "of the file"
    file.write_text("another")
    assert meta._where().password == "another"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must hold the password, on one line of text"),
        (b"\n", "must hold the password"),
        (b"secret\nsecret\n", "must hold the password"),
        (b"secret\xff", "must hold the password"),
        (b"secret\0", "must hold the password"),
        (b"secret" * 1000, "must hold the password"),
    ],
)
def test_a_file_without_one_is_refused_and_nothing_of_it_shown(
    file: Path, content: bytes, complaint: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"metadb.password_file: {file} {complaint}") as refused:
        MetaDB(MetaDBConfig(URL, password_file=str(file)))
    assert "secret" not in str(refused.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("none", "No such file"),
        (".", "Is a directory|is not a file"),
        ("pipe", "not a file"),
    ):
        with pytest.raises(ConfigError, match=f"^metadb.password_file: .*({reason})"):
            MetaURL.of(MetaDBConfig(URL, password_file=str(tmp_path / name)))


def test_a_file_that_everybody_may_read_is_warned_of_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = MetaDBConfig(URL, password_file=str(file))
    with caplog.at_level(logging.WARNING):
        MetaURL.of(config)
        assert not caplog.messages
        file.chmod(0o644)
        MetaURL.of(config)
        MetaURL.of(config)
    assert caplog.messages == [f"metadb.password_file: everybody may read {file}: chmod o-r {file}"]
