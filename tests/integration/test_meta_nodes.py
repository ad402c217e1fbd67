"""Nodes in MetaDB: they register themselves, are alive by the database's clock, and may do nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from pg8000.native import DatabaseError

from distfs.config import MetaDBConfig
from distfs.errors import ConfigError, Refused
from distfs.meta import MetaDB
from distfs.model import Node
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


def test_too_few_rights_are_said_in_words(metadb_url: str) -> None:
    as_node = MetaDB(MetaDBConfig(url=metadb_url.replace("//distfs@", "//distfs_node@")))
    with pytest.raises(ConfigError, match="permission denied for table node"):
        as_node.nodes(soon())
    as_node.close()
