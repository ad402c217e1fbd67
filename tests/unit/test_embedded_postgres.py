"""Finding the embedded MetaDB: every way of not finding it is one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import distfs
from distfs.errors import ConfigError, Unavailable
from distfs.metadb.embedded_postgres import binary, is_embedded, resolve, version
from distfs.metadb.url import Host, MetaURL

PIDFILE = "4711\n/data\n1700000000\n5432\n/run/my socket\n\n  1 2\nready   \n"


def pidfile(folder: Path, text: str) -> str:
    (folder / "postgres").mkdir()
    (folder / "postgres" / "postmaster.pid").write_text(text)
    return f"embedded:{folder}"


def test_only_embedded_urls_are_embedded() -> None:
    assert is_embedded("embedded:./data/metadb")
    assert not is_embedded("postgresql://anna@db/files")


def test_a_running_server_is_found_by_its_own_word(tmp_path: Path) -> None:
    url = MetaURL.parse(resolve(pidfile(tmp_path, PIDFILE)))
    assert url == MetaURL((Host("/run/my socket", 5432),), "distfs", "postgres")


def test_the_role_can_be_named(tmp_path: Path) -> None:
    url = pidfile(tmp_path, PIDFILE)
    assert MetaURL.parse(resolve(f"{url}?user=distfs_node")).user == "distfs_node"


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start a new one with `distfs up`"):
        resolve(f"embedded:{tmp_path}")


def test_a_server_that_runs_no_more_is_started_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is run: `distfs up` in another folder would start another cluster."""
    data = tmp_path / "my data"
    (data / "metadb" / "postgres").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable) as refused:
        resolve("embedded:my data/metadb")
    assert f"start it with `distfs up --data '{data}'`; " in str(refused.value)


def test_where_there_never_was_a_server_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"there is no MetaDB in {tmp_path}/metadb: correct metadb.url, or"):
        resolve(f"embedded:{tmp_path}/metadb")


def test_a_server_that_is_just_starting_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is starting"):
        resolve(pidfile(tmp_path, "4711\n/data\n"))


def test_a_misspelt_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="role"):
        resolve(f"embedded:{tmp_path}?role=distfs_node")


def test_data_of_a_version_that_is_not_installed_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigError, match="made by PostgreSQL 9, .*`distfs backup`.*`distfs restore`"):
        binary("postgres", tmp_path)


def test_a_missing_extra_is_one_line_that_names_the_pip_install() -> None:
    """Asked of a Python that sees distfs and no installed package."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(distfs.__file__).parent.parent)!r})\n"
        "from distfs.metadb.embedded_postgres import EmbeddedPostgres\n"
        "from distfs.errors import ConfigError\n"
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    try:\n"
        "        EmbeddedPostgres(folder).start()\n"
        "    except ConfigError as e:\n"
        "        print(e)\n"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.count("\n") == 1
    assert "pip install 'distfs[embedded]'" in told.stdout


def test_a_program_is_asked_for_its_version_once_until_another_is_installed(tmp_path: Path) -> None:
    """It was asked at each start, by two processes for each release in the wheel."""
    program, asked = tmp_path / "postgres", tmp_path / "asked"

    def install(release: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f'#!/bin/sh\necho "$1" >> {asked}\necho "postgres (PostgreSQL) {release}"\n')
        fresh.chmod(0o755)
        os.utime(fresh, (0, float(release)))
        fresh.replace(program)

    install("16.9")
    assert [version(program), version(program)] == [16, 16]
    assert asked.read_text() == "-V\n"
    install("18.4")
    assert [version(program), version(program)] == [18, 18]
    assert asked.read_text() == "-V\n-V\n"
