# ruff: noqa: S608 - of names that stand here
"""What each role of `distfs migrate --roles` must not do, tried table by table and function by function; and that it
may what its part needs."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from distfs.access.db import TokenDB
from distfs.access.terms import read_terms
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError, OverQuota
from distfs.http_app import create_app
from distfs.meta import MetaDB
from distfs.metadb.driver import DatabaseError
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.roles import ROLES, _verifier
from distfs.metadb.url import MetaURL
from distfs.model import Ownership
from distfs.recovery.db import RecoveryDB
from tests.cluster.harness import clean_environment
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, register
from tests.postgres import run_sql
from tests.service import HttpAddress, listening, running_node, small_config

ROOT = Path(__file__).resolve().parents[2]

#: table -> what a role may with rows of it: Select, Insert, Update, Delete. Who may nothing is not named. A new table
#: has to be named here, after somebody has asked who needs it.
SERVICE, UPKEEP, READONLY = "distfs_service", "distfs_upkeep", "distfs_readonly"
MAY: dict[str, dict[str, str]] = {
    "migration": {SERVICE: "S", UPKEEP: "S", READONLY: "S"},
    "cluster": {SERVICE: "S", UPKEEP: "S", READONLY: "S", "distfs_node": "S"},
    "cluster_key": {SERVICE: "S", UPKEEP: "SID", "distfs_node": "S"},
    "setting": {SERVICE: "SI", UPKEEP: "SIUD", READONLY: "S", "distfs_node": "S"},
    "node": {SERVICE: "S", UPKEEP: "SD", READONLY: "S"},  # of columns see below
    "forgetting": {SERVICE: "S", UPKEEP: "SIUD", READONLY: "S"},
    "forgotten_node": {SERVICE: "S", UPKEEP: "SIUD", READONLY: "S"},
    "token": {SERVICE: "SIU", UPKEEP: "SIU"},
}
USUAL = {SERVICE: "SIUD", UPKEEP: "SIUD", READONLY: "S"}
MAY |= dict.fromkeys(
    (
        *("file", "slice", "trash", "trash_slice", "owned", "link"),
        *("purged", "admission", "reservation", "damage", "node_scrub", "worker"),
    ),
    USUAL,
)

OF_NODES = {"node_heartbeat", "node_leave", "node_holds_keys", "node_refused"}
OF_OPERATORS = {"begin_forget", "end_forget", "forget_node", "rotate_cluster_key", "retire_cluster_key"}
FOR_LOOKING = {
    *("kept_by", "kept_count", "lost_nodes", "hurt_among", "short_without"),
    *("safe_to_unplug", "leaving_node", "may_name", "slice_places"),
}
#: Of services and upkeep. So with a new one.
OF_SERVICES = {
    *("commit_file", "require_staying", "silent_node"),
    *("create_token", "begin_to_count", "log_add", "log_forget"),
}


@pytest.fixture
def url(metadb_url: str, tmp_path: Path) -> str:
    with closing(MetaDB(MetaDBConfig(url=metadb_url))) as owner:
        owner.migrate(tmp_path / "roles")
    return metadb_url


def as_role(url: str, role: str) -> str:
    return url.replace("//distfs@", f"//{role}@")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def denied(link: Link, sql: str) -> str:
    """What of a statement is not allowed: "table x", "function y"; empty: all is. It leaves nothing."""
    link.raw.run("BEGIN")
    try:
        link.raw.run(sql)
    except DatabaseError as e:
        if e.args[0]["C"] != "42501":
            return ""
        return str(e.args[0]["M"]).removeprefix("permission denied for ")
    finally:
        link.raw.run("ROLLBACK")
    return ""


def linked(stack: ExitStack, url: str, role: str) -> Link:
    parsed = MetaURL.parse(as_role(url, role))
    link = Link(parsed, parsed.hosts[0], Deadline(60), statement_timeout=60)
    stack.callback(link.close)
    link.raw._usock.settimeout(60)
    return link


@pytest.mark.parametrize("role", ROLES)
def test_table_by_table_a_role_may_no_more_than_its_part_needs(url: str, role: str, stack: ExitStack) -> None:
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    link = linked(stack, url, role)
    found = {}
    for [table] in run_sql(url, tables):
        [[column]] = run_sql(
            url, f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum = 1"
        )
        tries = {
            "S": f"SELECT * FROM {table} LIMIT 0",
            "I": f"INSERT INTO {table} DEFAULT VALUES",
            "U": f"UPDATE {table} SET {column} = DEFAULT WHERE false",
            "D": f"DELETE FROM {table} WHERE false",
        }
        found[table] = "".join(letter for letter, sql in tries.items() if not denied(link, sql))
        for never in (f"TRUNCATE {table}", f"DROP TABLE {table}", f"ALTER TABLE {table} ADD COLUMN x int"):
            assert denied(link, never) or "must be owner" in str(_error(link, never)), never
    assert found == {table: may.get(role, "") for table, may in MAY.items()}


def _error(link: Link, sql: str) -> object:
    try:
        link.raw.run(sql)
    except DatabaseError as e:
        return e
    return None


@pytest.mark.parametrize("role", ROLES)
def test_of_a_node_s_row_only_operators_change_what_is_believed(
    url: str, role: str, stack: ExitStack
) -> None:
    link = linked(stack, url, role)
    columns = [
        name
        for [name] in run_sql(
            url, "SELECT attname FROM pg_attribute WHERE attrelid = 'node'::regclass AND attnum > 0"
        )
    ]
    may = [name for name in columns if not denied(link, f"UPDATE node SET {name} = DEFAULT WHERE false")]
    reach = {"given_up", "unreachable_since", "unreachable_at"}
    assert set(may) == {SERVICE: reach, UPKEEP: reach | {"state", "secret_hash"}}.get(role, set())


@pytest.mark.parametrize("role", [*ROLES, "nobody"])
def test_function_by_function_a_role_may_no_more_than_its_part_needs(
    url: str, role: str, stack: ExitStack
) -> None:
    known = [name for [name] in run_sql(url, "SELECT rolname::text FROM pg_roles")]
    if role not in known:  # what PUBLIC may, everybody may
        run_sql(url, f"CREATE ROLE {role} LOGIN")
    functions = run_sql(
        url,
        "SELECT proname, oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
        "AND prorettype <> 'trigger'::regtype",
    )
    link = linked(stack, url, role)
    may = set()
    for name, signature in functions:
        types = signature.partition("(")[2].rstrip(")").split(",")
        call = f"{name}({', '.join(f'NULL::{each}' for each in types if each)})"
        if name == "slice_places":  # of no value it would not be called
            call = "slice_places(ARRAY[1], gen_random_uuid())"
        if f"function {name}" != denied(link, f"SELECT {call}"):
            may.add(name)
    names = {name for name, _ in functions}
    assert names == OF_NODES | OF_OPERATORS | FOR_LOOKING | OF_SERVICES
    assert (
        may
        == {
            SERVICE: names - OF_NODES - OF_OPERATORS,
            UPKEEP: names - OF_NODES,
            READONLY: FOR_LOOKING,
            "distfs_node": OF_NODES | {"log_add"},
            "nobody": set(),
        }[role]
    )
    assert denied(link, "CREATE TABLE mine (x int)")
    assert denied(link, "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'")


def test_a_node_does_not_speak_for_another(url: str, tmp_path: Path, stack: ExitStack) -> None:
    config = replace(small_config(url), metadb=MetaDBConfig(url=as_role(url, "distfs_node")))
    one = stack.enter_context(running_node(tmp_path / "one", config))
    _registered(url, 1)
    link = linked(stack, url, "distfs_node")
    before = run_sql(url, "SELECT secret_hash, key_ids, stopped FROM node")
    own = one.store.node
    for call in (
        f"SELECT node_heartbeat('{own}', '{one.address}', '', 1, 0, 1, 'readonly', 10, '', sha256('guessed'))",
        f"SELECT node_leave('{own}', '{one.address}', sha256('guessed'))",
        f"SELECT node_holds_keys('{own}', '{{}}', sha256('guessed'))",
        f"SELECT node_holds_keys('{own}', '{{}}', NULL)",
    ):
        _error(link, call)
    assert run_sql(url, "SELECT secret_hash, key_ids, stopped FROM node") == before


def test_a_service_may_keep_copies_of_metadb_and_lists_of_deletions(
    url: str, make_database: Callable[[str], str]
) -> None:
    """With no more rights than it has."""
    with closing(MetaDB(MetaDBConfig(url=url))) as owner:
        register(owner, 2)
        owner.commit_files([new_file((10,))], Deadline(60))
    out = BytesIO()
    with closing(MetaDB(MetaDBConfig(url=as_role(url, SERVICE)))) as meta:
        meta.copy_to(out.write, secrets=False)
        db = RecoveryDB(meta)
        assert db.copies(Deadline(60))[0] == []
        assert db.deleted_since(0.0, Deadline(60)) == (0, 0)
        assert not db.is_begun(Deadline(60))
    with closing(MetaDB(MetaDBConfig(url=make_database("template1")))) as other:
        other.load_copy(out)
        assert len(other.list_files(None, 10, Deadline(60))) == 1
        assert other.cluster_keys(Deadline(60)) != (), "of its own"


def _registered(url: str, count: int) -> None:
    holds = "SELECT count(*) FROM node WHERE cardinality(key_ids) > 0"
    eventually(lambda: run_sql(url, holds) == [[count]], "the nodes have registered")


def test_a_service_and_nodes_work_as_their_roles(url: str, tmp_path: Path, stack: ExitStack) -> None:
    config = small_config(url)
    of_node = replace(config, metadb=MetaDBConfig(url=as_role(url, "distfs_node")))
    for number in range(3):
        stack.enter_context(running_node(tmp_path / f"n{number}", of_node))
    _registered(url, 3)
    config = replace(config, metadb=MetaDBConfig(url=as_role(url, SERVICE)))
    app = create_app(config)
    stack.callback(app.close)
    service = HttpAddress(*stack.enter_context(listening(app, config)))
    data = bytes(range(256)) * 3000
    made = service.ask("PUT", "/upload/x", data)
    assert made.status == 201, made.text
    uuid = made.text.strip()
    assert service.ask("GET", f"/download/{uuid}").body == data
    for words, said in (
        (["nodes"], "up"),
        (["status"], "1"),
    ):
        told = distfs(as_role(url, READONLY), tmp_path, *words)
        assert told.returncode == 0, told.stderr
        assert said in told.stdout
    refused = distfs(as_role(url, READONLY), tmp_path, "drain", "1", "--no-wait")
    assert refused.returncode != 0
    assert "permission denied" in refused.stderr
    for words in (
        ["fsck"],
        ["drain", "1", "--no-wait"],
        ["undrain", "1"],
        ["trust", "1"],
        ["cluster-key", "rotate"],
    ):
        done = distfs(as_role(url, UPKEEP), tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    assert service.ask("DELETE", f"/files/{uuid}").status == 204
    done = distfs(as_role(url, UPKEEP), tmp_path, "undelete", uuid)
    assert done.returncode == 0, done.stderr
    assert service.ask("GET", f"/download/{uuid}").body == data
    assert distfs(as_role(url, SERVICE), tmp_path, "cluster-key", "retire", "--force").returncode != 0


def distfs(url: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distfs", *words, "--metadb", url],
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_passwords_are_made_once_for_their_owner_alone_and_given_ones_are_taken(
    metadb_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "roles"
    folder.mkdir(0o700)
    (folder / "distfs_upkeep").write_text("one that was given\n")
    first = distfs(metadb_url, tmp_path, "migrate", "--roles", str(folder))
    assert first.returncode == 0, first.stderr
    texts = {role: (folder / role).read_text().strip() for role in ROLES}
    assert texts["distfs_upkeep"] == "one that was given"
    for role in set(ROLES) - {"distfs_upkeep"}:
        assert len(texts[role]) > 40
        assert stat.S_IMODE((folder / role).stat().st_mode) == 0o600
    again = distfs(metadb_url, tmp_path, "migrate", "--roles", str(folder))
    assert {role: (folder / role).read_text().strip() for role in ROLES} == texts
    for said in (first, again):
        assert not any(text in said.stdout + said.stderr for text in texts.values())
    kept = run_sql(metadb_url, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'distfs\\_%'")
    assert {name for name, verifier in kept if verifier.startswith("SCRAM-SHA-256$4096:")} == set(ROLES)


def test_a_role_logs_in_with_its_password(tmp_path: Path) -> None:
    (tmp_path / "roles").mkdir(0o700)
    (tmp_path / "roles" / "distfs_readonly").write_text(" with blanks around it \n")
    server = EmbeddedPostgres(tmp_path / "metadb", {"fsync": "off"})
    server.start()
    try:
        with closing(MetaDB(MetaDBConfig(url=server.url))) as owner:
            owner.migrate(tmp_path / "roles")
        rules = server.folder / "postgres" / "pg_hba.conf"
        rules.write_text("local all distfs trust\nlocal all all scram-sha-256\n")
        run_sql(server.url, "SELECT pg_reload_conf()")
        for role in ROLES:
            right = MetaDBConfig(url=as_role(server.url, role), password_file=str(tmp_path / "roles" / role))
            with closing(MetaDB(right)) as meta:
                meta.cluster_id(Deadline(60))
            wrong = replace(right, password_file="", password=_verifier("x"))  # type: ignore[arg-type]
            with closing(MetaDB(wrong)) as meta, pytest.raises(DistfsError):
                meta.cluster_id(Deadline(10))
    finally:
        server.stop()


@pytest.mark.parametrize("role", [SERVICE, UPKEEP])
def test_who_makes_tokens_may(url: str, role: str) -> None:
    terms = read_terms({"owner": "anna", "scopes": ["upload"], "quota": 1500})
    with (
        closing(MetaDB(MetaDBConfig(url=as_role(url, role)))) as meta,
        closing(MetaDB(MetaDBConfig(url))) as owner,
    ):
        register(owner, 2)
        db = TokenDB(meta)
        id, _ = db.create(terms, Deadline(60))
        meta.commit_files([new_file((1000,))], Deadline(60), Ownership("anna", "private", 1500))
        with pytest.raises(OverQuota):
            meta.commit_files([new_file((1000,))], Deadline(60), Ownership("anna", "private", 1500))
        db.rotate(id, 60.0, Deadline(60))
        db.revoke(id, Deadline(60))
        assert [each.owned for each in db.listed(Deadline(60), all=True)] == [1000]
