"""Nodes in MetaDB: they register themselves, are alive by the database's clock, and may do nothing else."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from pg8000.native import DatabaseError

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError, NodeForgotten, NotFound, Refused
from distfs.meta import MetaDB
from distfs.metadb.answers import Rows
from distfs.model import Node
from distfs.upkeep.db import UpkeepDB
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, report, soon
from tests.postgres import run_sql


def silence(url: str, uuid: UUID, seconds: float) -> None:
    """Make a node's last heartbeat older, as if the time had passed."""
    run_sql(
        url,
        "UPDATE node SET heartbeat_at = now() - make_interval(secs => :s) WHERE uuid = :uuid",
        s=seconds,
        uuid=uuid,
    )


def only_node(meta: MetaDB) -> Node:
    [node] = meta.nodes(soon())
    return node


def test_the_first_heartbeat_registers_a_node(meta: MetaDB) -> None:
    said = report(used=30)
    number = meta.heartbeat(said, soon())
    node = only_node(meta)
    assert number == node.id > 0
    assert (node.uuid, node.address, node.zone) == (said.uuid, said.address, "z1")
    assert (node.capacity, node.free, node.state) == (1000, 970, "active")
    assert node.alive
    assert node.writable
    assert 0 <= node.heartbeat_age < 10


def test_a_heartbeat_updates_what_the_node_says_and_keeps_its_id(meta: MetaDB) -> None:
    uuid = uuid4()
    number = meta.heartbeat(report(uuid, used=30), soon())
    assert meta.heartbeat(report(uuid, used=40, state="readonly"), soon()) == number
    node = only_node(meta)
    assert (node.free, node.state, node.writable) == (960, "readonly", False)


def test_a_node_says_which_disk_it_is_on_and_one_of_an_older_version_need_not(
    meta: MetaDB, metadb_url: str
) -> None:
    told = replace(report(), disk="host:2049")
    meta.heartbeat(told, soon())
    assert only_node(meta).disk == "host:2049"
    old = "SELECT node_heartbeat(:uuid, '127.0.0.1:9001', 'z1', 10, 5, 5, 'active', 10)"
    run_sql(metadb_url, old, uuid=told.uuid)
    assert only_node(meta).disk == ""
    assert only_node(meta).free == 5


def test_heartbeats_use_up_no_ids(meta: MetaDB) -> None:
    first = uuid4()
    for _ in range(20):
        meta.heartbeat(report(first), soon())
    assert meta.heartbeat(report(port=9002), soon()) == meta.heartbeat(report(first), soon()) + 1


def test_a_silent_node_is_down_by_the_database_clock_until_it_speaks_again(
    meta: MetaDB, metadb_url: str
) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid), soon())
    silence(metadb_url, uuid, 11)
    node = only_node(meta)
    assert not node.alive
    assert not node.writable
    assert node.heartbeat_age >= 11
    meta.heartbeat(report(uuid), soon())
    assert only_node(meta).alive


def test_how_long_a_node_may_be_silent_is_a_setting(meta: MetaDB, metadb_url: str) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid), soon())
    silence(metadb_url, uuid, 30)
    patient = MetaDB(MetaDBConfig(url=metadb_url), down_after=60)
    assert only_node(patient).alive
    assert not only_node(meta).alive
    patient.close()


def test_a_node_that_moved_keeps_its_id(meta: MetaDB, metadb_url: str) -> None:
    uuid = uuid4()
    number = meta.heartbeat(report(uuid, port=9001), soon())
    silence(metadb_url, uuid, 11)
    assert meta.heartbeat(report(uuid, port=9009), soon()) == number
    assert only_node(meta).address.port == 9009


def test_a_second_live_process_with_the_same_uuid_is_refused(meta: MetaDB) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid, port=9001), soon())
    with pytest.raises(Refused, match=r"alive at 127.0.0.1:9001: .* data folder of its own"):
        meta.heartbeat(report(uuid, port=9002), soon())
    assert only_node(meta).address.port == 9001


def test_two_live_nodes_at_one_address_are_refused(meta: MetaDB, metadb_url: str) -> None:
    first, second = uuid4(), uuid4()
    meta.heartbeat(report(first), soon())
    with pytest.raises(Refused, match="address 127.0.0.1:9001 belongs to node"):
        meta.heartbeat(report(second), soon())
    silence(metadb_url, first, 11)
    meta.heartbeat(report(second), soon())
    assert [node.alive for node in meta.nodes(soon())] == [False, True]


def test_of_two_that_register_one_address_at_once_one_gets_it(metadb_url: str) -> None:
    results: list[str] = []

    def register() -> None:
        meta = MetaDB(MetaDBConfig(url=metadb_url))
        try:
            meta.heartbeat(report(), soon())
            results.append("registered")
        except Refused:
            results.append("refused")
        finally:
            meta.close()

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused", "refused", "refused", "registered"]


def test_a_node_that_leaves_is_down_at_once_and_may_come_back_elsewhere(meta: MetaDB) -> None:
    said = report(used=30)
    number = meta.heartbeat(said, soon())
    meta.node_leave(said.uuid, said.address, soon())
    node = only_node(meta)
    assert (node.alive, node.writable, node.used) == (False, False, 30)
    assert node.heartbeat_age < 10
    assert meta.heartbeat(report(said.uuid, port=9009), soon()) == number
    assert only_node(meta).alive


def test_the_address_of_a_node_that_left_is_free(meta: MetaDB) -> None:
    said = report()
    meta.heartbeat(said, soon())
    meta.node_leave(said.uuid, said.address, soon())
    meta.heartbeat(report(), soon())
    assert [node.alive for node in meta.nodes(soon())] == [False, True]


def test_a_process_that_was_refused_does_not_take_its_double_along(meta: MetaDB) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid, port=9001), soon())
    meta.node_leave(uuid, report(port=9002).address, soon())
    assert only_node(meta).alive


def test_draining_is_the_operators_word_and_outlives_heartbeats(meta: MetaDB, metadb_url: str) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid), soon())
    run_sql(metadb_url, "UPDATE node SET state = 'draining'")
    meta.heartbeat(report(uuid), soon())
    assert only_node(meta).state == "draining"
    assert not only_node(meta).writable


def test_a_node_cannot_report_itself_draining(meta: MetaDB) -> None:
    with pytest.raises(Refused, match="not draining"):
        meta.heartbeat(report(state="draining"), soon())


def test_the_cluster_id_is_one_and_stays(meta: MetaDB, metadb_url: str) -> None:
    other = MetaDB(MetaDBConfig(url=metadb_url))
    assert meta.cluster_id(soon()) == other.cluster_id(soon())
    other.close()
    with pytest.raises(DatabaseError):
        run_sql(metadb_url, "INSERT INTO cluster DEFAULT VALUES")


def test_the_role_of_nodes_may_heartbeat_leave_and_read_the_cluster_id(meta: MetaDB, metadb_url: str) -> None:
    as_node = MetaDB(MetaDBConfig(url=metadb_url.replace("//distfs@", "//distfs_node@")))
    assert as_node.cluster_id(soon()) == meta.cluster_id(soon())
    said = report()
    assert as_node.heartbeat(said, soon()) == only_node(meta).id
    as_node.node_leave(said.uuid, said.address, soon())
    assert not only_node(meta).alive
    as_node.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT forget_node(1, 10)",
        "SELECT lost_nodes(10, true)",
        "SELECT * FROM damage",
        "SELECT * FROM file",
        "SELECT * FROM slice",
        "SELECT * FROM trash",
        "SELECT * FROM node",
        "UPDATE node SET free = 1",
        "INSERT INTO node SELECT 9, gen_random_uuid(), 'a:1', '', 1, 1, 1, 'active', now(), now(), false, false",
        "DELETE FROM node",
        "DELETE FROM file",
        "UPDATE cluster SET id = gen_random_uuid()",
        "DELETE FROM migration",
        "CREATE TABLE mine (n int)",
        "CREATE ROLE another",
    ],
)
def test_the_role_of_nodes_may_do_nothing_else(meta: MetaDB, metadb_url: str, sql: str) -> None:
    meta.heartbeat(report(), soon())
    meta.commit_files([new_file()], soon())
    with pytest.raises(DatabaseError) as caught:
        run_sql(metadb_url.replace("//distfs@", "//distfs_node@"), sql)
    assert caught.value.args[0]["C"] == "42501"


def test_the_role_of_nodes_makes_no_tables_on_postgresql_14_either(meta: MetaDB, metadb_url: str) -> None:
    run_sql(metadb_url, "GRANT CREATE ON SCHEMA public TO PUBLIC")  # as it is there from the start
    run_sql(as_node(metadb_url), "CREATE TABLE before (n int)")
    meta.migrate()
    with pytest.raises(DatabaseError) as caught:
        run_sql(as_node(metadb_url), "CREATE TABLE mine (n int)")
    assert caught.value.args[0]["C"] == "42501"


def test_too_few_rights_are_said_in_words(metadb_url: str) -> None:
    as_node = MetaDB(MetaDBConfig(url=metadb_url.replace("//distfs@", "//distfs_node@")))
    with pytest.raises(ConfigError, match="permission denied for table node"):
        as_node.nodes(soon())
    as_node.close()


# --- a node speaks for itself alone ---------------------------------------------------------------------------------

SECRET, ANOTHER = b"s" * 32, b"t" * 32
_OLD_HEARTBEAT = "SELECT node_heartbeat(:uuid, :address, 'z1', 10, 5, 5, 'active', :down_after, '')"


def as_node(url: str) -> str:
    return url.replace("//distfs@", "//distfs_node@")


def test_a_node_with_a_secret_is_nobody_else(meta: MetaDB, metadb_url: str) -> None:
    said = report()
    number = meta.heartbeat(said, soon(), SECRET)
    assert meta.heartbeat(said, soon(), SECRET) == number
    silence(metadb_url, said.uuid, 60)
    moved = replace(said, address=report(port=9009).address)
    for secret in (ANOTHER, None):
        for what in (said, moved):
            with pytest.raises(Refused, match=rf"this is not node {number}, .* `distfs trust {number}`"):
                meta.heartbeat(what, soon(), secret)
    old = {"uuid": said.uuid, "address": "127.0.0.1:9009", "down_after": 0}
    with pytest.raises(DatabaseError):
        run_sql(as_node(metadb_url), _OLD_HEARTBEAT, **old)
    assert only_node(meta).address == said.address
    assert not only_node(meta).alive
    assert meta.heartbeat(moved, soon(), SECRET) == number


def test_only_the_node_itself_says_that_it_leaves(meta: MetaDB, metadb_url: str) -> None:
    said = report()
    meta.heartbeat(said, soon(), SECRET)
    for secret in (ANOTHER, None):
        meta.node_leave(said.uuid, said.address, soon(), secret)
    run_sql(as_node(metadb_url), "SELECT node_leave(:u, :a)", u=said.uuid, a=str(said.address))
    assert only_node(meta).alive
    meta.node_leave(said.uuid, said.address, soon(), SECRET)
    assert not only_node(meta).alive


def test_a_secret_is_kept_as_its_hash(meta: MetaDB, metadb_url: str) -> None:
    meta.heartbeat(report(), soon(), SECRET)
    assert run_sql(metadb_url, "SELECT secret_hash FROM node") == [[hashlib.sha256(SECRET).digest()]]


def test_a_node_of_the_release_before_is_believed_until_it_first_names_a_secret(
    meta: MetaDB, metadb_url: str
) -> None:
    uuid = uuid4()
    old = {"uuid": uuid, "address": "127.0.0.1:9001", "down_after": 10}
    [[number]] = run_sql(as_node(metadb_url), _OLD_HEARTBEAT, **old)
    assert run_sql(as_node(metadb_url), _OLD_HEARTBEAT, **old) == [[number]]
    assert meta.heartbeat(report(uuid), soon(), SECRET) == number
    with pytest.raises(DatabaseError, match="distfs trust"):
        run_sql(as_node(metadb_url), _OLD_HEARTBEAT, **old)


def test_a_node_that_lost_its_secret_is_believed_when_an_operator_says_so(meta: MetaDB) -> None:
    said = report()
    number = meta.heartbeat(said, soon(), SECRET)
    UpkeepDB(meta).trust_node(number, soon())
    assert meta.heartbeat(said, soon(), ANOTHER) == number
    with pytest.raises(Refused):
        meta.heartbeat(said, soon(), SECRET)


@pytest.mark.parametrize("secret", [None, ANOTHER])
def test_nobody_moves_or_displaces_a_node_by_claiming_that_none_is_alive(
    meta: MetaDB, metadb_url: str, secret: bytes | None
) -> None:
    """``down_after`` is the cluster's, whatever the caller says: a live node keeps its UUID and its address."""
    said = report()
    meta.heartbeat(said, soon())  # of the release before: without a secret
    liar = MetaDB(MetaDBConfig(url=as_node(metadb_url)), down_after=0)
    with pytest.raises(Refused, match="is alive at"):
        liar.heartbeat(replace(said, address=report(port=9009).address), soon(), secret)
    with pytest.raises(Refused, match="belongs to node"):
        liar.heartbeat(report(), soon(), secret)
    liar.close()
    assert only_node(meta).address == said.address


def test_the_clusters_down_after_tells_who_is_alive(meta: MetaDB, metadb_url: str) -> None:
    said = report()
    meta.heartbeat(said, soon(), SECRET)
    meta.adopt_settings({"node.down_after": 60.0}, soon())
    silence(metadb_url, said.uuid, 30)
    with pytest.raises(Refused, match="belongs to node"):
        meta.heartbeat(report(), soon(), ANOTHER)
    meta.adopt_settings({"node.down_after": 20.0}, soon())
    meta.heartbeat(report(), soon(), ANOTHER)


def test_what_is_refused_or_rolled_back_uses_up_no_id(meta: MetaDB, metadb_url: str) -> None:
    first = meta.heartbeat(report(), soon(), SECRET)
    bad = [report(), report(port=9002, state="draining"), replace(report(port=9003), zone="z" * 101)]
    bad += [replace(report(port=9004), used=-1), replace(report(port=9005), disk="d" * 101)]
    for each in bad:
        with pytest.raises((Refused, DistfsError)):
            meta.heartbeat(each, soon(), SECRET)
    heartbeat = _OLD_HEARTBEAT.replace(":address", "'127.0.0.1:9006'").replace(":down_after", "1")
    for _ in range(3):
        run_sql(as_node(metadb_url), f"BEGIN; {heartbeat.replace(':uuid', 'gen_random_uuid()')}; ROLLBACK")
    assert meta.heartbeat(report(port=9007), soon(), SECRET) == first + 1


def test_an_id_is_not_given_twice(meta: MetaDB) -> None:
    said = report()
    first = meta.heartbeat(said, soon(), SECRET)
    meta.node_leave(said.uuid, said.address, soon(), SECRET)
    UpkeepDB(meta).forget_node(first, soon())
    UpkeepDB(meta).undo_forget(first, soon())
    assert meta.heartbeat(said, soon(), SECRET) == first + 1


def test_a_node_that_was_forgotten_is_refused_until_that_is_taken_back(meta: MetaDB, metadb_url: str) -> None:
    """Also by its UUID alone, as the release before speaks, at another address, and after its secret was lost."""
    said, upkeep = report(), UpkeepDB(meta)
    first = meta.heartbeat(said, soon(), SECRET)
    meta.node_leave(said.uuid, said.address, soon(), SECRET)
    upkeep.forget_node(first, soon())
    for each, secret in ((said, SECRET), (replace(said, address=report(port=9002).address), ANOTHER)):
        with pytest.raises(NodeForgotten, match=rf"this was node {first}, .*`distfs forget --undo {first}`"):
            meta.heartbeat(each, soon(), secret)
    old = {"uuid": said.uuid, "address": str(said.address), "down_after": 10}
    with pytest.raises(DatabaseError, match="which was forgotten") as caught:
        run_sql(as_node(metadb_url), _OLD_HEARTBEAT, **old)
    assert caught.value.args[0]["C"] == "DF001"  # what the release before knows as a refusal
    assert meta.nodes(soon()) == []
    another = meta.heartbeat(report(port=9003), soon(), ANOTHER)  # nobody else is
    assert upkeep.undo_forget(first, soon()) == first
    assert meta.heartbeat(said, soon(), SECRET) == another + 1
    for named in (first, said.uuid, another):
        with pytest.raises(NotFound, match="was forgotten"):
            upkeep.undo_forget(named, soon())


@pytest.mark.parametrize("step", ["begin_forget", "forget_node"])
def test_who_heartbeats_before_a_step_of_forget_is_not_forgotten(
    meta: MetaDB, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between its steps, which are transactions of their own: a heartbeat that waited for the first is next."""
    said = report()
    number = meta.heartbeat(said, soon(), SECRET)
    meta.node_leave(said.uuid, said.address, soon(), SECRET)
    write = meta.write

    def comes_back(query: str, deadline: Deadline, **params: Any) -> Rows:
        if query == step:
            meta.heartbeat(said, soon(), SECRET)
        return write(query, deadline, **params)

    monkeypatch.setattr(meta, "write", comes_back)
    with pytest.raises(Refused, match=f"node {number} is alive at"):
        UpkeepDB(meta).forget_node(number, soon())
    [node] = meta.nodes(soon())
    assert (node.id, node.state, node.alive) == (number, "active", True)


@pytest.mark.parametrize("first", ["heartbeat", "forget"])
def test_of_a_heartbeat_and_the_end_of_a_forget_that_meet_the_later_one_is_refused(
    metadb_url: str, first: str
) -> None:
    config = MetaDBConfig(url=metadb_url, statement_timeout=Seconds(120))  # for who waits for the row
    with closing(MetaDB(config)) as meta, closing(meta.connect(soon())) as holder:
        said = report()
        number = meta.heartbeat(said, soon(), SECRET)
        meta.node_leave(said.uuid, said.address, soon(), SECRET)
        params: dict[str, Any] = {"node": number, "down_after": meta.down_after}
        [[word]] = meta.write("begin_forget", soon(), **params)
        acts: dict[str, Callable[[], object]] = {
            "heartbeat": lambda: meta.heartbeat(said, soon(), SECRET),
            "forget": lambda: meta.write("forget_node", soon(), word=word, **params),
        }
        holder.raw.run("BEGIN")
        holder.raw.run("SELECT FROM node FOR UPDATE")
        with ThreadPoolExecutor() as threads:
            ends = []
            for waiting, name in enumerate([first, *(acts.keys() - {first})], 1):
                ends.append(threads.submit(acts[name]))
                eventually(partial(_all_wait, metadb_url, waiting), f"{name} waits for the node's row")
            holder.raw.run("COMMIT")
            errors = [end.exception(120) for end in ends]
        assert errors[0] is None
        assert isinstance(errors[1], Refused)
        assert isinstance(errors[1], NodeForgotten) == (first == "forget")
        assert [node.id for node in meta.nodes(soon())] == ([number] if first == "heartbeat" else [])


def _all_wait(url: str, how_many: int) -> bool:
    [[count]] = run_sql(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    return bool(count == how_many)


def test_nodes_are_bounded(meta: MetaDB, metadb_url: str) -> None:
    run_sql(
        metadb_url,
        "INSERT INTO node (uuid, address, zone, capacity, used, free, state) "
        "SELECT gen_random_uuid(), 'host:1', '', 1, 1, 1, 'active' FROM generate_series(1, 999)",
    )
    said = report()
    last = meta.heartbeat(said, soon(), SECRET)
    assert last == 1000
    with pytest.raises(Refused, match=r"has 1000 storage nodes, and takes no more: `distfs forget`"):
        meta.heartbeat(report(port=9002), soon(), SECRET)
    assert meta.heartbeat(said, soon(), SECRET) == last


@pytest.mark.parametrize(
    "address",
    [
        "host:0",
        "host:99999",
        ":9001",
        "host:",
        "a:b:9001",
        "::1:9001",
        "a host:9001",
        "host:9001\n",
        "[x]:1",
        "a/b:1",
    ],
)
def test_an_address_that_cannot_be_is_refused(meta: MetaDB, metadb_url: str, address: str) -> None:
    for role in (metadb_url, as_node(metadb_url)):
        with pytest.raises(DatabaseError, match="nobody can reach a node at"):
            run_sql(role, _OLD_HEARTBEAT, uuid=uuid4(), address=address, down_after=10)
    assert meta.nodes(soon()) == []


@pytest.mark.parametrize(
    "address", ["host:1", "10.0.0.1:65535", "[2001:db8::1]:9001", "[fe80::1%eth0]:9", "a_b.c-d:80"]
)
def test_an_address_that_can_be_is_taken(meta: MetaDB, metadb_url: str, address: str) -> None:
    run_sql(metadb_url, _OLD_HEARTBEAT, uuid=uuid4(), address=address, down_after=10)
    assert str(only_node(meta).address) == address
