"""What else upkeep and operators ask of MetaDB: what is wanted, trash, nodes, scrubs, workers, health."""

from __future__ import annotations

import math
from uuid import uuid4

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.errors import DistfsError, NotFound, Refused, Unavailable
from distfs.meta import MetaDB
from distfs.model import FragmentId, Policy
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import Claim, Kept
from tests.integration.meta_examples import ONE_COPY_MORE, placed, register, report, silence_node, soon
from tests.postgres import run_sql


@pytest.fixture
def upkeep(meta: MetaDB) -> UpkeepDB:
    return UpkeepDB(meta)


def age_trash(url: str, seconds: float) -> None:
    """As if everything in the trash had been deleted that much earlier."""
    run_sql(url, "UPDATE trash SET deleted_at = deleted_at - make_interval(secs => :s)", s=seconds)


# --- what is wanted -----------------------------------------------------------------------------------


def test_claims_answer_for_every_fragment_asked_about(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    live, deleted = placed((1, 2)), placed((2, 1))
    meta.commit_files([live, deleted], soon())
    meta.delete_file(deleted.id, soon())
    kept, trashed, unknown = live.slices[0].id, deleted.slices[0].id, uuid4()
    asked = [FragmentId(piece, index) for piece in (kept, trashed, unknown) for index in (0, 1, 2)]
    claims = upkeep.claims(1, [*asked, asked[0]], soon())
    assert {id: claim.here for id, claim in claims.items()} == {
        FragmentId(kept, 0): True,
        FragmentId(kept, 1): False,
        FragmentId(kept, 2): False,
        FragmentId(trashed, 0): False,
        FragmentId(trashed, 1): True,
        FragmentId(trashed, 2): False,
        FragmentId(unknown, 0): False,
        FragmentId(unknown, 1): False,
        FragmentId(unknown, 2): False,
    }
    assert upkeep.claims(1, [], soon()) == {}


def test_a_claim_tells_whether_the_slice_lacks_anything(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 5)
    whole, silent, nobody, forgotten = placed((1, 2)), placed((1, 3)), placed((1, 0)), placed((1, 9))
    damaged, moved, deleted, purged = placed((1, 2)), placed((1, 2)), placed((1, 3)), placed((1, 3))
    meta.commit_files([whole, silent, nobody, forgotten, damaged, moved, deleted, purged], soon())
    for file in (deleted, purged):
        meta.delete_file(file.id, soon())
    run_sql(metadb_url, "UPDATE trash SET purge_at = now() WHERE id = :id", id=purged.id)
    assert upkeep.note_damage(damaged.slices[0].id, 1, 2, "bad", soon())
    assert upkeep.note_damage(moved.slices[0].id, 1, 2, "bad", soon())
    run_sql(metadb_url, "UPDATE slice SET nodes[2] = 4 WHERE id = :id", id=moved.slices[0].id)
    silence_node(metadb_url, 3, 60)
    unknown = FragmentId(uuid4(), 0)
    files = [whole, silent, nobody, forgotten, damaged, moved, deleted, purged]
    asked = [FragmentId(file.slices[0].id, 1) for file in files]
    claims = upkeep.claims(5, [*asked, unknown], soon())
    short, kept = [True] * 4, Claim(here=False, short=False, keeper=2)
    assert [claims[id].short for id in asked] == [False, *short, False, True, False]
    assert [claims[id].keeper for id in asked] == [2, 3, 0, 9, 2, 4, 3, 0]
    assert claims[asked[0]] == kept
    assert kept.unwanted
    assert claims[unknown] == Claim(here=False, short=False, keeper=0)
    assert upkeep.claims(2, asked[4:5], soon()) == {asked[4]: Claim(here=True, short=True, keeper=2)}
    assert upkeep.claims(5, [FragmentId(whole.slices[0].id, 7)], soon()).popitem()[1].keeper == 0
    # 60 s of silence are not for ever: whose row says that is not to be adopted yet
    strays = {task.fragment: task.trashed for task in upkeep.strays(5, [*asked, unknown], 600, soon())}
    assert strays == dict.fromkeys(asked[2:5], False)
    strays = {task.fragment: task.trashed for task in upkeep.strays(5, [*asked, unknown], 30, soon())}
    assert strays == dict.fromkeys(asked[1:5], False) | {asked[6]: True}
    assert upkeep.strays(1, asked, 30, soon()) == [], "node 1 keeps another fragment of each"


def test_a_stray_tells_its_file(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    file = placed((1, 0), name="hurt")
    meta.commit_files([file], soon())
    [task] = upkeep.strays(2, [FragmentId(file.slices[0].id, index) for index in (0, 1, 2)], 600, soon())
    assert (task.file, task.name, task.index, task.trashed) == (file.id, "hurt", 1, False)
    assert (task.piece, task.policy) == (file.slices[0], ONE_COPY_MORE)


def test_claims_have_no_answer_while_metadb_is_away() -> None:
    away = MetaDB(MetaDBConfig(url="postgresql://distfs@127.0.0.1:1/distfs"))
    with pytest.raises(Unavailable):
        UpkeepDB(away).claims(1, [FragmentId(uuid4(), 0)], soon())
    away.close()


def test_all_a_node_keeps_is_listed_in_pages_without_gap_or_double(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    files = [placed((1, 2), (2, 1), (3, 2)) for _ in range(12)]
    meta.commit_files(files, soon())
    for file in files[:5]:
        meta.delete_file(file.id, soon())
    expected = sorted(
        (FragmentId(piece.id, piece.nodes.index(1)) for f in files for piece in f.slices if 1 in piece.nodes),
        key=lambda fragment: fragment.slice,
    )
    seen: list[FragmentId] = []
    while page := upkeep.fragments_on(1, seen[-1].slice if seen else None, 5, soon()):
        assert len(page) <= 5
        seen += [kept.id for kept in page]
    assert seen == expected
    assert upkeep.fragments_left(1, soon()) == len(expected) == 24
    tasks = upkeep.slices_on(1, None, 1000, soon())
    assert [FragmentId(task.piece.id, task.index) for task in tasks] == expected
    assert upkeep.fragments_on(1, None, 1000, soon()) == [
        Kept(task.fragment, task.piece.digest, task.block_size, task.fragment_size) for task in tasks
    ]
    assert upkeep.slices_on(1, tasks[6].piece.id, 3, soon()) == tasks[7:10]


def test_a_slice_to_move_tells_its_file_and_whether_that_is_deleted(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    live, deleted = placed((1, 2), name="live"), placed((2, 3), name="deleted")
    meta.commit_files([live, deleted], soon())
    meta.delete_file(deleted.id, soon())
    tasks = {task.file: task for task in upkeep.slices_on(2, None, 10, soon())}
    assert {file: (task.name, task.index, task.trashed) for file, task in tasks.items()} == {
        live.id: ("live", 1, False),
        deleted.id: ("deleted", 0, True),
    }
    assert tasks[deleted.id].piece == deleted.slices[0]
    assert tasks[deleted.id].policy == ONE_COPY_MORE


# --- trash --------------------------------------------------------------------------------------------


def test_trash_expires_after_its_time_oldest_first(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    register(meta, 2)
    first, second, third = placed((1, 2), (2, 1)), placed(), placed((1, 2))
    meta.commit_files([first, second, third], soon())
    for file in (first, second):
        meta.delete_file(file.id, soon())
        age_trash(metadb_url, 100)
    meta.delete_file(third.id, soon())
    assert upkeep.expired_trash(300, 10, soon()) == []
    assert [trashed.id for trashed in upkeep.expired_trash(50, 10, soon())] == [first.id, second.id]
    [oldest] = upkeep.expired_trash(50, 1, soon())
    assert (oldest.id, oldest.slices) == (first.id, first.slices)


def test_what_is_being_purged_cannot_be_undeleted_half(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    age_trash(metadb_url, 100)
    [expired] = upkeep.expired_trash(50, 10, soon())
    with pytest.raises(NotFound, match="in the trash"):
        meta.undelete_file(expired.id, soon())
    # nobody can want it any more: what the purge does not reach is an orphan, which is put aside and not deleted
    [claim] = upkeep.claims(1, [FragmentId(file.slices[0].id, 0)], soon()).values()
    assert claim == Claim(here=False, short=False, keeper=0)
    assert upkeep.drop_trash(expired.id, soon())
    assert not upkeep.drop_trash(expired.id, soon())
    assert run_sql(metadb_url, "SELECT * FROM trash_slice") == []


def test_only_what_expired_can_be_dropped(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    assert not upkeep.drop_trash(file.id, soon())
    meta.undelete_file(file.id, soon())
    assert not upkeep.drop_trash(file.id, soon())
    assert meta.file(file.id, soon()).slices == file.slices


# --- nodes --------------------------------------------------------------------------------------------


def test_a_node_drains_and_takes_part_again(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 1)
    upkeep.set_node_state(1, "draining", soon())
    assert not meta.nodes(soon())[0].writable
    upkeep.set_node_state(1, "active", soon())
    assert meta.nodes(soon())[0].writable
    with pytest.raises(NotFound, match="no node 7"):
        upkeep.set_node_state(7, "draining", soon())
    with pytest.raises(DistfsError, match="readonly"):
        upkeep.set_node_state(1, "readonly", soon())


def test_a_live_node_is_not_forgotten(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    with pytest.raises(Refused, match=r"node 1 is alive at 127.0.0.1:9001: drain it"):
        upkeep.forget_node(1, soon())
    assert len(meta.nodes(soon())) == 2


def test_a_drained_node_is_forgotten_when_it_has_stopped(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    """While it heartbeats it would be back at once, as a new node that takes writes."""
    register(meta, 3)
    live, deleted = placed((1, 2)), placed((1, 3))
    meta.commit_files([live, deleted], soon())
    meta.delete_file(deleted.id, soon())
    upkeep.set_node_state(1, "draining", soon())
    for file, target in ((live, 3), (deleted, 2)):
        with pytest.raises(Refused, match="alive"):
            upkeep.forget_node(1, soon())
        upkeep.move_fragment(file.slices[0].id, 0, 1, target, soon())
    assert upkeep.leaving(1, soon()).safe
    with pytest.raises(Refused, match="node 1 is alive at .* stop its process; then forget it"):
        upkeep.forget_node(1, soon())
    run_sql(metadb_url, "UPDATE node SET stopped = true WHERE id = 1")
    upkeep.forget_node(1, soon())
    upkeep.forget_node(1, soon())
    assert [node.id for node in meta.nodes(soon())] == [2, 3]


def test_a_dead_node_is_forgotten_and_its_fragments_are_nobodys(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 3)
    live, deleted = placed((1, 2), (2, 3), (3, 1)), placed((2, 1))
    meta.commit_files([live, deleted], soon())
    meta.delete_file(deleted.id, soon())
    upkeep.begin_scrub(1, soon())
    silence_node(metadb_url, 1, 20)
    upkeep.forget_node(1, soon())
    assert [piece.nodes for piece in meta.file(live.id, soon()).slices] == [(1, 2), (2, 3), (3, 1)]
    meta.undelete_file(deleted.id, soon())
    assert meta.file(deleted.id, soon()).slices[0].nodes == (2, 1)
    assert len(upkeep.work_to_repair(600, 10, soon())) == 3


@pytest.mark.parametrize("why", ["other is down", "other has stopped", "other is damaged", "nobody keeps it"])
def test_a_node_that_keeps_the_last_fragment_is_not_forgotten(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str, why: str
) -> None:
    register(meta, 3)
    file = placed((1, 2), (1, 3), (3, 2))
    meta.commit_files([file], soon())
    silence_node(metadb_url, 1, 20)
    if why == "other is down":
        silence_node(metadb_url, 2, 20)
    elif why == "other has stopped":
        run_sql(metadb_url, "UPDATE node SET stopped = true WHERE id = 2")
    elif why == "other is damaged":
        upkeep.note_damage(file.slices[0].id, 1, 2, "gone", soon())
    else:
        run_sql(metadb_url, "UPDATE slice SET nodes = '{1,0}' WHERE id = :id", id=file.slices[0].id)
    with pytest.raises(Refused, match=r"not enough left to read 1 slices of 1 files .*distfs fsck"):
        upkeep.forget_node(1, soon())
    assert meta.file(file.id, soon()).slices[1].nodes == (1, 3)


def test_a_deleted_file_that_can_be_undeleted_counts_when_a_node_is_forgotten(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 2)
    file = placed((1,), policy=Policy(1, 0))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    silence_node(metadb_url, 1, 20)
    with pytest.raises(Refused, match="not enough left"):
        upkeep.forget_node(1, soon())
    upkeep.expired_trash(0, 10, soon())
    upkeep.forget_node(1, soon())
    assert [node.id for node in meta.nodes(soon())] == [2]


# --- scrub, workers, leaders --------------------------------------------------------------------------


def test_a_scrub_goes_from_its_cursor_to_the_end_of_its_round(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 1)
    fresh = upkeep.scrub_state(1, soon())
    assert (fresh.cursor, fresh.checked, fresh.round_age, fresh.last_round_age) == ("", 0, None, None)
    assert upkeep.begin_scrub(1, soon()).round_age is not None
    upkeep.save_scrub(1, "ab", 10, 1, soon())
    again = upkeep.begin_scrub(1, soon())
    assert (again.cursor, again.checked, again.bad) == ("ab", 10, 1)
    upkeep.save_scrub(1, None, 25, 2, soon())
    done = upkeep.scrub_state(1, soon())
    assert (done.cursor, done.checked, done.bad, done.round_age) == ("", 25, 2, None)
    assert done.last_round_age is not None
    assert done.last_round_age >= 0
    upkeep.save_scrub(1, "late", 99, 9, soon())
    assert upkeep.scrub_state(1, soon()).cursor == ""
    assert upkeep.begin_scrub(1, soon()).checked == 0


def test_the_scrub_of_an_unknown_node_is_not_found(upkeep: UpkeepDB) -> None:
    for call in (upkeep.scrub_state, upkeep.begin_scrub):
        with pytest.raises(NotFound):
            call(3, soon())


def test_a_backup_is_known_by_its_age_and_is_no_worker(upkeep: UpkeepDB) -> None:
    assert upkeep.backup_age(soon()) == math.inf
    upkeep.save_worker("backup", "done", {}, soon())
    assert 0 <= upkeep.backup_age(soon()) < math.inf
    assert upkeep.workers(soon()) == []


def test_a_workers_last_result_is_seen_by_all(upkeep: UpkeepDB) -> None:
    upkeep.save_worker("repair", "busy", {"slice": "a", "bytes_per_second": 5.5}, soon())
    upkeep.save_worker("repair", "idle", {"stuck": "nö"}, soon())
    upkeep.save_worker("orphans", "idle", {}, soon())
    orphans, repair = upkeep.workers(soon())
    assert (orphans.name, repair.name) == ("orphans", "repair")
    assert (repair.state, repair.detail) == ("idle", {"stuck": "nö"})
    assert repair.pid > 0
    assert repair.age >= 0


def test_a_worker_can_be_woken_whatever_it_says_of_itself(upkeep: UpkeepDB) -> None:
    upkeep.wake_worker("repair", soon())
    assert upkeep.woken_at("repair", soon()) is None
    upkeep.save_worker("repair", "idle", {}, soon())
    upkeep.wake_worker("repair", soon())
    first = upkeep.woken_at("repair", soon())
    upkeep.save_worker("repair", "busy", {}, soon())
    assert upkeep.woken_at("repair", soon()) == first
    upkeep.wake_worker("repair", soon())
    second = upkeep.woken_at("repair", soon())
    assert first is not None
    assert second is not None
    assert first < second


def test_the_clock_is_the_databases(upkeep: UpkeepDB, metadb_url: str) -> None:
    before, after = upkeep.clock(soon()), upkeep.clock(soon())
    [[now]] = run_sql(metadb_url, "SELECT extract(epoch FROM now())::double precision")
    assert before <= after <= now


# --- health and status --------------------------------------------------------------------------------


def test_health_is_that_of_the_slice_that_is_worst_off(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 5)
    policy = Policy(2, 2)
    file = placed((1, 2, 3, 4), (5, 4, 3, 2), policy=policy)
    [committed] = meta.commit_files([file], soon())
    health = upkeep.health(file.id, soon())
    assert (health.redundancy_left, health.missing, health.nodes) == (2, 0, (1, 2, 3, 4, 5))
    assert health.last_verified == committed.created_at
    silence_node(metadb_url, 2, 20)
    upkeep.note_damage(file.slices[0].id, 3, 4, "gone", soon())
    health = upkeep.health(file.id, soon())
    assert (health.redundancy_left, health.missing) == (0, 3)
    run_sql(metadb_url, "UPDATE slice SET nodes = '{0,2,3,4}' WHERE ordinal = 0")
    health = upkeep.health(file.id, soon())
    assert (health.redundancy_left, health.missing, health.nodes) == (-1, 4, (2, 3, 4, 5))


def test_a_file_was_verified_when_the_last_full_scrub_of_its_nodes_began(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 3)
    file = placed((1, 2))
    [committed] = meta.commit_files([file], soon())
    for node in (1, 2, 3):
        upkeep.begin_scrub(node, soon())
        assert upkeep.health(file.id, soon()).last_verified == committed.created_at
    upkeep.save_scrub(1, None, 1, 0, soon())
    assert upkeep.health(file.id, soon()).last_verified == committed.created_at
    upkeep.save_scrub(2, None, 1, 0, soon())
    [[first_began]] = run_sql(
        metadb_url, "SELECT min(last_round_started_at) FROM node_scrub WHERE node_id IN (1, 2)"
    )
    assert upkeep.health(file.id, soon()).last_verified == first_began > committed.created_at


def test_a_file_younger_than_the_scrub_counts_from_its_creation(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    for node in (1, 2):
        upkeep.begin_scrub(node, soon())
        upkeep.save_scrub(node, None, 0, 0, soon())
    [committed] = meta.commit_files([placed((1, 2))], soon())
    assert upkeep.health(committed.id, soon()).last_verified == committed.created_at


def test_a_file_without_bytes_lacks_nothing(upkeep: UpkeepDB, meta: MetaDB) -> None:
    [empty] = meta.commit_files([placed(policy=Policy(4, 2))], soon())
    health = upkeep.health(empty.id, soon())
    assert (health.redundancy_left, health.missing, health.nodes) == (2, 0, ())
    assert health.last_verified == empty.created_at
    with pytest.raises(NotFound):
        upkeep.health(uuid4(), soon())


def test_status_counts_slices_by_redundancy_left(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    register(meta, 6)
    coded = Policy(2, 2)
    files = [
        placed((1, 2), (2, 3), (3, 4)),
        placed((3, 4, 5, 6), (1, 4, 5, 6), (1, 2, 5, 6), policy=coded),
        placed((1, 2)),
        placed(),
    ]
    meta.commit_files(files, soon())
    meta.delete_file(files[2].id, soon())
    assert upkeep.status(soon()).slices == {1: 3, 2: 3}
    for node in (1, 2):
        silence_node(metadb_url, node, 20)
    upkeep.note_damage(files[1].slices[2].id, 2, 5, "gone", soon())
    upkeep.save_worker("repair", "idle", {}, soon())
    status = upkeep.status(soon())
    assert status.slices == {-1: 2, 0: 1, 1: 2, 2: 1}
    assert (status.files, status.bytes, status.damaged) == (3, 6000, 1)
    assert (status.trash_files, status.trash_bytes) == (1, 1000)
    assert [node.alive for node in status.nodes] == [False, False, True, True, True, True]
    assert [worker.name for worker in status.workers] == ["repair"]


def test_the_status_of_an_empty_cluster_is_empty(upkeep: UpkeepDB) -> None:
    status = upkeep.status(soon())
    assert (status.files, status.bytes, status.slices, status.nodes, status.workers) == (0, 0, {}, (), ())


def test_status_shows_a_stopped_node_as_down_at_once(upkeep: UpkeepDB, meta: MetaDB) -> None:
    said = report()
    meta.heartbeat(said, soon())
    meta.heartbeat(report(port=9002), soon())
    meta.commit_files([placed((1, 2))], soon())
    meta.node_leave(said.uuid, said.address, soon())
    assert upkeep.status(soon()).slices == {0: 1}
