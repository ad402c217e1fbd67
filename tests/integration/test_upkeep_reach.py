"""A node that heartbeats and that nobody can reach counts as lost in the end, and counts again when it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.commands.drain import drain
from distfs.commands.nodes import show_nodes
from distfs.commands.operator import Operator
from distfs.commands.status import show_status
from distfs.errors import Refused
from distfs.meta import MetaDB
from distfs.model import Address
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.scrub import Scrub
from tests.integration.meta_examples import register, report, soon
from tests.integration.upkeep_cluster import DAY, HOUR, UpkeepCluster, bytes_of, drive
from tests.postgres import run_sql

DELAY = 600.0


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as running:
        yield running


def looking(cluster: UpkeepCluster) -> Scrub:
    """Scrub of a service that has just come to lead, and asks the nodes at every step."""
    scrub = cluster.scrub()
    scrub._reach._every = 0.0
    return scrub


def look(cluster: UpkeepCluster, scrub: Scrub, times: int = 2) -> None:
    for _ in range(times):
        cluster._nodes()
        cluster.db.save_worker("scrub", "idle", scrub.step(soon()).detail, soon())


def let_time_pass(url: str, seconds: float = 2 * HOUR) -> None:
    """As if what is unreachable had been so for longer."""
    run_sql(
        url, "UPDATE node SET unreachable_since = unreachable_since - make_interval(secs => :s)", s=seconds
    )


def unreachable(url: str) -> list[object]:
    return [
        id for [id] in run_sql(url, "SELECT id FROM node WHERE unreachable_since IS NOT NULL ORDER BY id")
    ]


def test_what_nobody_can_reach_is_made_anew_elsewhere_and_counts_again_when_it_answers(
    cluster: UpkeepCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytes_of(6)
    file, node = cluster.upload(data), cluster.id(0)
    assert any(holder == node for _, holder in cluster.fragments(file))
    cluster.cut_off(node)
    look(cluster, looking(cluster))
    assert unreachable(cluster.url) == [node]
    let_time_pass(cluster.url, DELAY - 60)
    look(cluster, scrub := looking(cluster))  # another service leads: the time goes on
    assert (cluster.alive(node), cluster.db.backlog(DELAY, soon()).slices) == (True, 0)
    assert set(cluster.db.status(soon()).slices) == {1}

    let_time_pass(cluster.url, 60)
    look(cluster, scrub)
    assert not cluster.alive(node)
    assert set(cluster.db.status(soon()).slices) == {0, 1}
    assert cluster.db.health(file.id, soon()).redundancy_left == 0
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    show_nodes(operator, as_json=False)
    show_status(operator, ["http://127.0.0.1:9"], as_json=False)
    told = capsys.readouterr().out
    assert told.count("unreachable, given up") == 1
    assert "3 up, 1 unreachable; " in told
    assert "`distfs doctor` says why" in told
    with pytest.raises(Refused, match="heartbeats and does not answer"):
        drain(operator, str(node), wait=True, patience=1)
    drive(cluster.repair())
    later = cluster.upload(data)
    assert node not in {holder for _, holder in cluster.fragments(file, later)}
    cluster.assert_whole(file, later)
    assert set(cluster.db.status(soon()).slices) == {1}

    cluster.let_in(node)
    look(cluster, scrub, 1)
    assert (cluster.alive(node), unreachable(cluster.url)) == (True, [])
    assert cluster.on_disk(node)
    cluster.age_all(2 * DAY)
    drive(cluster.orphans())
    assert not cluster.on_disk(node)
    cluster.assert_whole(file, later)


def test_nobody_is_given_up_while_half_of_them_do_not_answer(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(6))
    one, another = cluster.id(0), cluster.id(1)
    cluster.cut_off(one)
    look(cluster, scrub := looking(cluster))
    let_time_pass(cluster.url)
    cluster.cut_off(another)
    look(cluster, fresh := looking(cluster))
    assert fresh.step(soon()).detail["unreachable"] == sorted([one, another])
    assert unreachable(cluster.url) == []
    assert cluster.alive(one)
    assert cluster.alive(another)
    assert cluster.db.backlog(DELAY, soon()).slices == 0

    cluster.let_in(another)
    look(cluster, scrub)
    assert (unreachable(cluster.url), cluster.alive(one)) == ([one], True)  # from now on, not from before
    cluster.let_in(one)
    cluster.assert_whole(file)


# --- what MetaDB keeps of it ------------------------------------------------------------------------------


def test_heartbeats_of_an_unreachable_node_change_nothing(meta: MetaDB, metadb_url: str) -> None:
    said = report(uuid4(), port=9000)
    node, upkeep = meta.heartbeat(said, soon()), UpkeepDB(meta)
    register(meta, 2)
    assert upkeep.note_reach([], [node], DELAY, soon()) == []
    meta.heartbeat(said, soon())
    let_time_pass(metadb_url)
    assert upkeep.note_reach([], [node], DELAY, soon()) == [node]
    meta.heartbeat(said, soon())
    [row, *_] = meta.nodes(soon())
    assert (row.unreachable, row.alive, row.writable) == (True, False, False)
    assert upkeep.note_reach([node], [], DELAY, soon()) == []
    [row, *_] = meta.nodes(soon())
    assert (row.unreachable, row.alive) == (False, True)


@pytest.mark.parametrize("how", ["at another address", "after it stopped", "nobody looked for long"])
def test_a_node_that_registers_anew_is_not_unreachable(meta: MetaDB, metadb_url: str, how: str) -> None:
    said = report(uuid4(), port=9000)
    node, upkeep = meta.heartbeat(said, soon()), UpkeepDB(meta)
    upkeep.note_reach([], [node], DELAY, soon())
    let_time_pass(metadb_url)
    upkeep.note_reach([], [node], DELAY, soon())
    if how == "at another address":
        run_sql(metadb_url, "UPDATE node SET heartbeat_at = now() - interval '1 minute'")
        said = replace(said, address=Address("127.0.0.1", 9999))
    elif how == "after it stopped":
        meta.node_leave(said.uuid, said.address, soon())
    else:
        run_sql(metadb_url, "UPDATE node SET unreachable_at = now() - interval '301 seconds'")
    meta.heartbeat(said, soon())
    [row] = meta.nodes(soon())
    assert (row.alive, unreachable(metadb_url)) == (True, [])


def test_an_operator_may_spare_an_unreachable_node_its_delay(meta: MetaDB, metadb_url: str) -> None:
    said = report(uuid4(), port=9000)
    node, upkeep = meta.heartbeat(said, soon()), UpkeepDB(meta)
    upkeep.note_reach([], [node], DELAY, soon())
    assert upkeep.give_up_silent_nodes(soon()) == [node]
    meta.heartbeat(said, soon())
    assert upkeep.note_reach([], [node], DELAY, soon()) == [node]
    assert not meta.nodes(soon())[0].alive
