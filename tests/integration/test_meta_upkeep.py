"""What repair asks of MetaDB: which slices lack a fragment, in which order, and one step of putting it right."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest

from distfs.meta import MetaDB
from distfs.model import Policy
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import by_risk
from distfs.upkeep.model import RepairTask
from tests.integration.meta_examples import placed, register, report, silence_node, soon
from tests.postgres import run_sql

DELAY = 600.0


@pytest.fixture
def upkeep(meta: MetaDB) -> UpkeepDB:
    return UpkeepDB(meta)


def lost(upkeep: UpkeepDB, delay: float = DELAY) -> dict[UUID, tuple[int, ...]]:
    """Slice -> the fragments repair would make, in the order of the work."""
    return {task.piece.id: task.lost for task in upkeep.work_to_repair(delay, 1000, soon())}


# --- what is lost -------------------------------------------------------------------------------------


def test_a_healthy_cluster_has_no_work(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    meta.commit_files([placed((1, 2), (2, 3)), placed()], soon())
    assert lost(upkeep) == {}
    assert upkeep.backlog(DELAY, soon()).slices == 0


def test_work_tells_all_that_a_new_fragment_needs(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    file = placed((1, 2, 3), (1, 0, 3), policy=Policy(2, 1), name="bü.bin")
    meta.commit_files([file], soon())
    [task] = upkeep.work_to_repair(DELAY, 10, soon())
    assert task == RepairTask(
        file.id, "bü.bin", "text/plain", Policy(2, 1), 1 << 20, file.slices[1], lost=(1,), redundancy_left=0
    )
    assert task.fragment_size == 500


def test_what_a_degraded_write_left_out_is_lost_at_once(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    file = placed((1, 2), (0, 2), (1, 0))
    meta.commit_files([file], soon())
    assert lost(upkeep) == {file.slices[1].id: (0,), file.slices[2].id: (1,)}


def test_a_silent_node_is_lost_only_after_the_delay(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    register(meta, 3)
    file = placed((1, 2), (2, 3))
    meta.commit_files([file], soon())
    silence_node(metadb_url, 1, 500)
    assert lost(upkeep) == {}
    assert lost(upkeep, delay=400) == {file.slices[0].id: (0,)}


def test_a_node_that_returns_is_no_longer_lost(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid), soon())
    meta.heartbeat(report(port=9002), soon())
    meta.commit_files([placed((1, 2))], soon())
    silence_node(metadb_url, 1, 700)
    assert len(lost(upkeep)) == 1
    meta.heartbeat(report(uuid), soon())
    assert lost(upkeep) == {}


def test_a_node_nobody_knows_is_lost(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    run_sql(metadb_url, "DELETE FROM node WHERE id = 2")
    assert lost(upkeep) == {file.slices[0].id: (1,)}
    assert upkeep.unknown_nodes(soon()) == [2]


def test_a_draining_node_is_not_lost(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    meta.commit_files([placed((1, 2))], soon())
    upkeep.set_node_state(1, "draining", soon())
    assert lost(upkeep) == {}


def test_a_node_that_stopped_waits_for_the_delay_too(upkeep: UpkeepDB, meta: MetaDB) -> None:
    said = report()
    meta.heartbeat(said, soon())
    meta.heartbeat(report(port=9002), soon())
    meta.commit_files([placed((1, 2))], soon())
    meta.node_leave(said.uuid, said.address, soon())
    assert lost(upkeep) == {}


def test_giving_silent_nodes_up_spares_the_delay_until_they_speak(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    uuid = uuid4()
    meta.heartbeat(report(uuid), soon())
    meta.heartbeat(report(port=9002), soon())
    file = placed((1, 2))
    meta.commit_files([file], soon())
    assert upkeep.give_up_silent_nodes(soon()) == []
    silence_node(metadb_url, 1, 20)
    assert lost(upkeep) == {}
    assert upkeep.give_up_silent_nodes(soon()) == [1]
    assert lost(upkeep) == {file.slices[0].id: (0,)}
    meta.heartbeat(report(uuid), soon())
    assert lost(upkeep) == {}


def test_a_file_in_the_trash_is_repaired_until_its_end_has_begun(upkeep: UpkeepDB, meta: MetaDB) -> None:
    """It can be undeleted, and must then be as safe as it was."""
    register(meta, 2)
    file = placed((1, 0))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    [task] = upkeep.work_to_repair(DELAY, 10, soon())
    assert task == RepairTask(
        file.id, "a.bin", "text/plain", Policy(1, 1), 1 << 20, file.slices[0], (1,), 0, trashed=True
    )
    backlog = upkeep.backlog(DELAY, soon())
    assert (backlog.slices, backlog.fragments, backlog.hopeless) == (1, 1, 0)
    upkeep.expired_trash(0, 10, soon())
    assert (lost(upkeep), upkeep.backlog(DELAY, soon()).slices) == ({}, 0)


def test_a_file_in_the_trash_that_is_lost_holds_nobody_up(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    """Nobody has to delete it to be rid of it; repair still looks whether its fragments came back."""
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    for node in (1, 2):
        silence_node(metadb_url, node, 700)
    assert lost(upkeep) == {file.slices[0].id: (0, 1)}
    backlog = upkeep.backlog(DELAY, soon())
    assert (backlog.slices, backlog.fragments, backlog.bytes, backlog.hopeless) == (0, 0, 0, 0)


# --- in which order -----------------------------------------------------------------------------------


def test_the_slice_nearest_to_its_end_comes_first_then_the_oldest(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 6)
    wide = Policy(2, 3)
    mild = placed((1, 2, 3, 4, 0), policy=wide)  # 2 left
    young = placed((1, 0), (2, 0))  # 0 left
    old = placed((3, 0))  # 0 left
    doomed = placed((0, 0, 3, 4, 5), policy=wide)
    for file in (mild, young, old, doomed):
        meta.commit_files([file], soon())
    run_sql(metadb_url, "UPDATE slice SET nodes = '{0,0,0,0,5}' WHERE file_id = :id", id=doomed.id)
    run_sql(
        metadb_url, "UPDATE file SET created_at = created_at - interval '1 hour' WHERE id = :id", id=old.id
    )
    tasks = upkeep.work_to_repair(DELAY, 10, soon())
    assert [task.redundancy_left for task in tasks] == [0, 0, 0, 2, -1]
    assert [task.file for task in tasks] == [old.id, young.id, young.id, mild.id, doomed.id]
    assert upkeep.work_to_repair(DELAY, 2, soon()) == tasks[:2]


def test_what_is_in_the_trash_comes_after_what_can_be_read_and_before_what_is_beyond_repair(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 6)
    mild = placed((1, 2, 3, 0), policy=Policy(2, 2))  # 1 left
    deleted = placed((1, 0))  # 0 left
    doomed, doomed_and_deleted = placed((1, 2)), placed((1, 2))
    meta.commit_files([deleted, doomed, doomed_and_deleted, mild], soon())
    for file in (deleted, doomed_and_deleted):
        meta.delete_file(file.id, soon())
    for table, file in (("slice", doomed), ("trash_slice", doomed_and_deleted)):
        sql = f"UPDATE {table} SET nodes = '{{0,0}}' WHERE file_id = :id"  # noqa: S608 - a table of our own
        run_sql(metadb_url, sql, id=file.id)
    tasks = upkeep.work_to_repair(DELAY, 10, soon())
    assert [task.file for task in tasks] == [mild.id, deleted.id, doomed.id, doomed_and_deleted.id]
    assert by_risk(reversed(tasks)) == tasks


def test_two_silent_nodes_put_what_was_on_both_first(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    register(meta, 6)
    policy = Policy(2, 2)
    one, both = placed((1, 3, 4, 5), policy=policy), placed((3, 2, 4, 1), policy=policy)
    meta.commit_files([one, both, placed((3, 4, 5, 6), policy=policy)], soon())
    for node in (1, 2):
        silence_node(metadb_url, node, 700)
    tasks = upkeep.work_to_repair(DELAY, 10, soon())
    assert [(task.file, task.lost) for task in tasks] == [(both.id, (1, 3)), (one.id, (0,))]
    backlog = upkeep.backlog(DELAY, soon())
    assert (backlog.slices, backlog.fragments, backlog.bytes, backlog.hopeless) == (2, 3, 1500, 0)


def test_what_cannot_be_rebuilt_is_counted_as_hopeless(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 3)
    meta.commit_files([placed((1, 2)), placed((1, 3))], soon())
    for node in (1, 2):
        silence_node(metadb_url, node, 700)
    backlog = upkeep.backlog(DELAY, soon())
    assert (backlog.slices, backlog.fragments, backlog.hopeless) == (2, 3, 1)


# --- damage -------------------------------------------------------------------------------------------


def test_damage_counts_as_lost_until_the_fragment_is_made_anew(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    piece = file.slices[0]
    assert upkeep.note_damage(piece.id, 1, 2, "cell 4 fails its checksum", soon())
    assert upkeep.note_damage(piece.id, 1, 2, "again", soon())
    assert upkeep.damage_count(soon()) == 1
    assert lost(upkeep) == {piece.id: (1,)}
    assert upkeep.move_fragment(piece.id, 1, 2, 3, soon())
    assert (lost(upkeep), upkeep.damage_count(soon())) == ({}, 0)


def test_a_fragment_made_anew_where_it_was_is_healed(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    upkeep.note_damage(file.slices[0].id, 0, 1, "gone", soon())
    assert upkeep.move_fragment(file.slices[0].id, 0, 1, 1, soon())
    assert (lost(upkeep), upkeep.damage_count(soon())) == ({}, 0)


def test_damage_of_what_is_elsewhere_or_gone_is_not_noted(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    assert not upkeep.note_damage(file.slices[0].id, 0, 3, "elsewhere", soon())
    assert not upkeep.note_damage(file.slices[0].id, 7, 1, "no such fragment", soon())
    assert not upkeep.note_damage(uuid4(), 0, 1, "no such slice", soon())
    assert upkeep.damage_count(soon()) == 0


def test_damage_is_remembered_in_the_trash_and_goes_when_its_file_is_gone_for_good(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 2)
    file, other = placed((1, 2), (2, 1)), placed((1, 2))
    meta.commit_files([file, other], soon())
    for piece in (*file.slices, *other.slices):
        upkeep.note_damage(piece.id, 0, piece.nodes[0], "gone", soon())
    before = upkeep.health(file.id, soon())
    meta.delete_file(file.id, soon())
    assert upkeep.damage_count(soon()) == 1, "what nobody can read is not counted"
    meta.undelete_file(file.id, soon())
    assert upkeep.health(file.id, soon()) == before
    assert upkeep.damage_count(soon()) == 3
    meta.delete_file(file.id, soon())
    upkeep.expired_trash(0, 10, soon())
    assert upkeep.drop_trash(file.id, soon())
    assert run_sql(metadb_url, "SELECT slice_id FROM damage") == [[other.slices[0].id]]


def test_damage_of_a_file_in_the_trash_is_noted_until_its_end_has_begun(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    piece = file.slices[0].id
    assert not upkeep.note_damage(piece, 0, 2, "elsewhere", soon())
    assert upkeep.note_damage(piece, 0, 1, "gone", soon())
    assert lost(upkeep) == {piece: (0,)}
    assert upkeep.move_fragment(piece, 0, 1, 1, soon())
    assert (lost(upkeep), run_sql(metadb_url, "SELECT * FROM damage")) == ({}, [])
    upkeep.expired_trash(0, 10, soon())
    assert not upkeep.note_damage(piece, 1, 2, "its fragments are being removed", soon())
    assert run_sql(metadb_url, "SELECT * FROM damage") == []


def test_a_note_overtaken_by_a_move_counts_for_nothing(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    run_sql(
        metadb_url,
        "INSERT INTO damage (slice_id, index, node_id, reason) VALUES (:id, 0, 3, 'of a node it left')",
        id=file.slices[0].id,
    )
    assert (lost(upkeep), upkeep.damage_count(soon())) == ({}, 0)
    assert upkeep.health(file.id, soon()).redundancy_left == 1
    assert upkeep.status(soon()).slices == {1: 1}
    assert upkeep.note_damage(file.slices[0].id, 0, 1, "now it is", soon())
    assert lost(upkeep) == {file.slices[0].id: (0,)}


def test_a_reason_of_any_length_and_bytes_can_be_noted(
    upkeep: UpkeepDB, meta: MetaDB, metadb_url: str
) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    assert upkeep.note_damage(file.slices[0].id, 0, 1, "\0\ud800" + "ü" * 5000, soon())
    [[reason]] = run_sql(metadb_url, "SELECT reason FROM damage")
    assert reason.startswith("?ü")
    assert 990 < len(reason.encode()) <= 1000


# --- moving -------------------------------------------------------------------------------------------


def nodes_of(meta: MetaDB, file: UUID) -> tuple[int, ...]:
    return meta.file(file, soon()).slices[0].nodes


def test_a_move_changes_one_position_and_only_from_what_it_was(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 4)
    file = placed((1, 2, 0), policy=Policy(1, 2))
    meta.commit_files([file], soon())
    piece = file.slices[0].id
    assert not upkeep.move_fragment(piece, 2, 3, 4, soon())
    assert upkeep.move_fragment(piece, 2, 0, 4, soon())
    assert upkeep.move_fragment(piece, 0, 1, 3, soon())
    assert nodes_of(meta, file.id) == (3, 2, 4)


def test_a_node_never_gets_two_fragments_of_a_slice(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    assert not upkeep.move_fragment(file.slices[0].id, 0, 1, 2, soon())
    assert nodes_of(meta, file.id) == (1, 2)


def test_nothing_moves_to_a_node_nobody_knows(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 2)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    assert not upkeep.move_fragment(file.slices[0].id, 0, 1, 99, soon())
    assert not upkeep.move_fragment(uuid4(), 0, 1, 2, soon())


def test_nothing_moves_to_a_node_that_began_to_drain_but_what_is_there_anyway(
    upkeep: UpkeepDB, meta: MetaDB
) -> None:
    """`distfs drain` has perhaps said already that the node is empty."""
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    piece = file.slices[0].id
    upkeep.set_node_state(3, "draining", soon())
    assert not upkeep.move_fragment(piece, 0, 1, 3, soon())
    upkeep.set_node_state(1, "draining", soon())
    assert upkeep.move_fragment(piece, 0, 1, 1, soon()), "made anew in place"
    assert upkeep.move_fragment(piece, 0, 1, 3, soon(), adopted=True)
    assert nodes_of(meta, file.id) == (3, 2)


def test_of_two_that_move_a_fragment_at_once_one_does(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 10)
    files = [placed((1, 2)) for _ in range(20)]
    meta.commit_files(files, soon())
    won: list[tuple[UUID, int]] = []
    start = threading.Barrier(4)

    def mover(target: int) -> None:
        start.wait()
        won.extend(
            (file.id, target)
            for file in files
            if upkeep.move_fragment(file.slices[0].id, 0, 1, target, soon())
        )

    threads = [threading.Thread(target=mover, args=(target,)) for target in (3, 4, 5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(file for file, _ in won) == sorted(file.id for file in files)
    assert all(nodes_of(meta, file) == (target, 2) for file, target in won)


def test_a_fragment_of_a_file_deleted_meanwhile_moves_in_the_trash(upkeep: UpkeepDB, meta: MetaDB) -> None:
    register(meta, 3)
    file = placed((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    assert upkeep.move_fragment(file.slices[0].id, 0, 1, 3, soon())
    assert not upkeep.move_fragment(file.slices[0].id, 0, 1, 3, soon())
    meta.undelete_file(file.id, soon())
    assert nodes_of(meta, file.id) == (3, 2)


def test_damage_is_noted_while_files_come_and_go(upkeep: UpkeepDB, meta: MetaDB, metadb_url: str) -> None:
    """A note locks its slice, or its file in the trash, as whoever moves them does: nobody fails or waits forever,
    and nothing is left of what is gone."""
    register(meta, 2)
    files = [placed((1, 2), (2, 1)) for _ in range(30)]
    meta.commit_files(files, soon())
    failures: list[BaseException] = []

    def run(job: object, *args: object) -> None:
        try:
            job(*args)  # type: ignore[operator]
        except BaseException as e:
            failures.append(e)
            raise

    def note() -> None:
        for file in files:
            for piece in file.slices:
                upkeep.note_damage(piece.id, 0, piece.nodes[0], "gone", soon())

    def delete() -> None:
        for file in files:
            meta.delete_file(file.id, soon())
            meta.undelete_file(file.id, soon())
            meta.delete_file(file.id, soon())
            for expired in upkeep.expired_trash(0, 10, soon()):
                upkeep.drop_trash(expired.id, soon())

    threads = [threading.Thread(target=run, args=(job,)) for job in (note, delete, note)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert run_sql(metadb_url, "SELECT * FROM damage") == []
