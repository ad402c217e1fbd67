"""Each part as a role of its own in a MetaDB that asks for passwords, as docker/compose.yml sets them up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import yaml

from distfs.config.settings import MetaDBConfig, Secret
from distfs.deadline import Deadline
from distfs.errors import DistfsError, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres, binary
from distfs.metadb.schema import NODE_ROLE
from distfs.metadb.url import MetaURL
from distfs.model import Address, NodeReport
from tests import nursery
from tests.contract.litter import eventually
from tests.postgres import run_sql, scratch_folder

DOCKER = Path(__file__).resolve().parents[2] / "docker"
STEP: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]["roles"]
OWNER, SERVICE, NODE = "owner's: p@ss/word?", "service's $secret", "node's 'secret'"


class Guarded:
    """A PostgreSQL that believes nobody without a password, but for the superuser."""

    def __init__(self, url: str) -> None:
        self.superuser = url
        self.place = MetaURL.parse(url)

    def url(self, user: str) -> str:
        return self.superuser.replace("//postgres@", f"//{user}@")

    def set_up(self, owner: str = OWNER, node: str = NODE) -> None:
        """What compose runs before the first part."""
        program, *flags = STEP["command"]
        environ = {
            "PGHOST": self.place.hosts[0].name,
            "PGPORT": str(self.place.hosts[0].port),
            "PGUSER": STEP["environment"]["PGUSER"],
            "PGDATABASE": STEP["environment"]["PGDATABASE"],
            "METADB_OWNER_PASSWORD": owner,
            "METADB_SERVICE_PASSWORD": SERVICE,
            "METADB_NODE_PASSWORD": node,
        }
        assert environ.keys() <= STEP["environment"].keys() | {"PGPORT"}
        here = [flag.replace("=/roles.sql", f"={DOCKER / 'roles.sql'}") for flag in flags]
        done = subprocess.run(
            [binary(program), *here], env=environ, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def guarded(copy_of_postgres: Callable[[Path], EmbeddedPostgres]) -> Iterator[Guarded]:
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        rules = server.folder / "postgres" / "pg_hba.conf"
        rules.write_text("local all postgres,deputy trust\nlocal all all trust\n")
        server.start()
        try:
            run_sql(server.url, "CREATE ROLE deputy SUPERUSER LOGIN")
            deputy = server.url.replace("//distfs@", "//deputy@")
            run_sql(deputy, "ALTER ROLE distfs RENAME TO postgres")
            run_sql(deputy, "CREATE DATABASE distfs OWNER postgres")
            rules.write_text("local all postgres,deputy trust\nlocal all all scram-sha-256\n")
            run_sql(deputy, "SELECT pg_reload_conf()")
            yield Guarded(deputy.replace("//deputy@/postgres?", "//postgres@/distfs?"))
        finally:
            server.stop()


def meta(url: str, password: str) -> closing[MetaDB]:
    return closing(MetaDB(MetaDBConfig(url, Secret(password))))


def soon() -> Deadline:
    return Deadline(60)


def test_the_parts_are_no_superusers_and_may_what_they_need(guarded: Guarded) -> None:
    for _ in range(2):  # it runs at each start
        guarded.set_up()
        with meta(guarded.url("distfs"), OWNER) as owner:
            owner.migrate()
            owner.ping(soon())
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    rows = run_sql(guarded.superuser, f"SELECT DISTINCT {rights} FROM pg_roles WHERE rolname LIKE 'distfs%'")  # noqa: S608
    assert rows == [[False] * 5]
    address, uuid = Address("10.0.0.1", 9001), uuid4()
    report = NodeReport(uuid, address, zone="", capacity=10**9, used=0, free=10**9, state="active")
    with meta(guarded.url(NODE_ROLE), NODE) as node, meta(guarded.url("distfs"), OWNER) as owner:
        number = node.heartbeat(report, soon())
        assert [each.id for each in owner.nodes(soon()) if each.uuid == uuid] == [number]
        for act in (lambda: node.nodes(soon()), lambda: node.list_files(None, 1, soon())):
            with pytest.raises(DistfsError, match="permission denied"):
                act()
    with meta(guarded.url("distfs_service"), SERVICE) as service:
        assert [each.id for each in service.nodes(soon()) if each.uuid == uuid] == [number]
        with pytest.raises(DistfsError, match=r"permission denied|must be owner"):
            service.migrate()
    with pytest.raises(Exception, match="permission denied"):
        run_sql(guarded.url(f"{NODE_ROLE}:node's%20'secret'"), "CREATE TABLE mine (x int)")


def test_a_wrong_password_is_no_way_in_and_one_that_changed_is(guarded: Guarded) -> None:
    guarded.set_up()
    for user, password in (("distfs", NODE), (NODE_ROLE, OWNER), ("distfs", "")):
        with meta(guarded.url(user), password) as wrong, pytest.raises(Unavailable) as refused:
            wrong.known_cluster(soon())
        assert not {OWNER, NODE} & set(str(refused.value).split(": "))
    guarded.set_up(owner="another")
    with meta(guarded.url("distfs"), "another") as owner:
        owner.migrate()
    guarded.set_up()


def test_every_part_takes_the_password_from_a_file_or_the_environment(
    guarded: Guarded, tmp_path: Path
) -> None:
    """And shows it nowhere: not in its arguments, not in what it says."""
    guarded.set_up()
    files = {"distfs": tmp_path / "owner", NODE_ROLE: tmp_path / "node"}
    for file, text in zip(files.values(), (OWNER, NODE), strict=True):
        file.write_text(f"{text}\n")
        file.chmod(0o600)
    given = {"DISTFS_METADB_URL": guarded.url("distfs"), "DISTFS_METADB_PASSWORD": OWNER}
    from_file = {"DISTFS_METADB_PASSWORD_FILE": str(files["distfs"])}
    said = [
        run(tmp_path, given, "migrate"),
        run(tmp_path, given | from_file | {"DISTFS_METADB_PASSWORD": ""}, "nodes"),
        run(tmp_path, from_file, "status", "--metadb", guarded.url("distfs")),
        run(tmp_path, given, "backup", "saved.sql"),
    ]
    node = {"DISTFS_METADB_URL": guarded.url(NODE_ROLE), "DISTFS_METADB_PASSWORD_FILE": str(files[NODE_ROLE])}
    parts = [
        start(tmp_path, node, "distfs.storage_server", "--init", "--data", "n1"),
        start(tmp_path, given, "distfs", "serve", "--port", "0"),
    ]
    try:
        with meta(guarded.url("distfs"), OWNER) as owner:
            eventually(
                lambda: any(n.alive and n.address.host == "127.0.0.1" for n in owner.nodes(soon())),
                "the node has registered",
                30,
            )
        assert parts[1].stdout is not None
        assert parts[1].stdout.readline().startswith("http://")
        said += [" ".join(psutil.Process(part.pid).cmdline()) for part in parts]
    finally:
        for part in parts:
            part.terminate()
            said += part.communicate(timeout=60)
    assert [part.returncode for part in parts] == [0, 0], said
    assert not any(secret in text for secret in (OWNER, NODE) for text in said)


def test_a_backup_is_restored_by_the_owner_who_is_no_superuser(guarded: Guarded, tmp_path: Path) -> None:
    guarded.set_up()
    given = {"DISTFS_METADB_URL": guarded.url("distfs"), "DISTFS_METADB_PASSWORD": OWNER}
    run(tmp_path, given, "migrate")
    run(tmp_path, given, "backup", "saved.sql")
    run_sql(guarded.superuser, "CREATE DATABASE another OWNER distfs")
    another = guarded.url("distfs").replace("/distfs?", "/another?")
    run(tmp_path, given, "restore", "saved.sql", "--metadb", another)
    with meta(guarded.url("distfs"), OWNER) as before, meta(another, OWNER) as after:
        assert after.cluster_id(soon()) == before.cluster_id(soon())


def test_up_on_a_metadb_that_asks_for_a_password_hands_it_to_its_parts(
    guarded: Guarded, tmp_path: Path
) -> None:
    guarded.set_up()
    (tmp_path / "password").write_text(OWNER)
    (tmp_path / "password").chmod(0o600)
    environ = {"DISTFS_METADB_URL": guarded.url("distfs"), "DISTFS_METADB_PASSWORD_FILE": "password"}
    with start(tmp_path, environ, "distfs", "up", "--data", "data", "--port", "0", "--join") as up:
        try:
            assert up.stdout is not None
            assert up.stdout.readline().startswith("distfs is ready at http://")
            everything = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
            assert len(everything) >= 5  # three nodes and a service
            assert not any(OWNER in " ".join(each.cmdline()) for each in everything)
        finally:
            up.terminate()
            out, err = up.communicate(timeout=90)
    assert up.returncode == 0, err
    assert OWNER not in out + err


def test_a_password_file_that_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    environ = {
        "DISTFS_METADB_URL": "postgresql://distfs@127.0.0.1:1/x",
        "DISTFS_METADB_PASSWORD_FILE": str(tmp_path / "none"),
    }
    parts = [
        ["distfs", "serve", "--port", "0"],
        ["distfs", "migrate"],
        ["distfs", "nodes"],
        ["distfs", "up", "--data", "data"],
        ["distfs", "backup", "saved.sql"],
        ["distfs", "restore", "saved.sql"],
        ["distfs.storage_server", "--init", "--data", "n2"],
    ]
    (tmp_path / "saved.sql").write_text("-- PostgreSQL database dump complete\n")
    for words in parts:
        ended = nursery.run([sys.executable, "-m", *words], tmp_path, environment(environ), 60)
        assert (ended.returncode, ended.stdout) == (2, ""), (words, ended.stderr)
        [line] = ended.stderr.splitlines()
        assert line.endswith(
            f"metadb.password_file: cannot read {tmp_path / 'none'}: No such file or directory"
        )


def run(folder: Path, environ: dict[str, str], *words: str) -> str:
    ended = nursery.run([sys.executable, "-m", "distfs", *words], folder, environment(environ), 60)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return str(ended.stdout + ended.stderr)


def start(folder: Path, environ: dict[str, str], module: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(more: dict[str, str]) -> dict[str, str]:
    pure = {key: value for key, value in os.environ.items() if not key.startswith(("DISTFS_", "PG"))}
    return {**pure, "PYTHONPATH": str(DOCKER.parent), **more}
