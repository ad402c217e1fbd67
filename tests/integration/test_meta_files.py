"""Files in MetaDB: committed whole or not at all, read back as they were, moved to the trash and back."""

from __future__ import annotations

import dataclasses
from datetime import UTC
from uuid import UUID, uuid4

import pytest
from pg8000.native import DatabaseError

from distfs.errors import DistfsError, NodesLeft, NotFound, OutcomeUnknown, Refused
from distfs.meta import MetaDB, storable_name
from distfs.model import MAX_NAME_BYTES, MAX_TYPE_BYTES, NewFile, Policy
from distfs.quantity import counted
from distfs.upkeep.db import UpkeepDB
from tests.integration.meta_examples import commit_as_before, new_file, placed, register, soon
from tests.postgres import run_sql


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (5, 5, 3), (32 << 20,) * 320], ids=str)
def test_a_committed_file_reads_back_as_it_was(meta: MetaDB, sizes: tuple[int, ...]) -> None:
    file = new_file(sizes, policy=Policy(4, 2))
    [committed] = meta.commit_files([file], soon())
    assert meta.file(file.id, soon()) == committed
    for field in dataclasses.fields(NewFile):
        assert getattr(committed, field.name) == getattr(file, field.name)
    assert committed.created_at.tzinfo == UTC


def test_slices_are_in_their_order_however_the_server_comes_upon_them(meta: MetaDB, metadb_url: str) -> None:
    [committed] = meta.commit_files([new_file((5, 5, 3))], soon())
    run_sql(metadb_url, "UPDATE slice SET size = size WHERE ordinal = 0")  # its row is the last now
    with meta._pool.link(soon()) as link:
        link.raw.run("SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_seqscan = on")
        found = link.run("file", soon(), {"id": committed.id})
    assert [row[12] for row in found] == [1, 2, 0]
    assert meta.file(committed.id, soon()) == committed


def test_a_file_is_as_metadb_has_it_now(meta: MetaDB, metadb_url: str) -> None:
    """Its answer is compared with the one before, all of it."""
    [file, other] = meta.commit_files([new_file((), name="same"), new_file((), name="same")], soon())
    for _ in range(2):
        assert meta.file(file.id, soon()) == file
        assert meta.file(other.id, soon()) == other
    assert meta.file(file.id, soon()) is meta.file(file.id, soon(), seen_by=None)
    meta.change_file(file.id, soon(), visibility="public")
    assert meta.file(file.id, soon(), seen_by="x") == dataclasses.replace(file, visibility="public")
    meta.change_file(file.id, soon(), name="new")
    assert meta.file(file.id, soon()).name == "new"
    assert meta.file(other.id, soon()) == other
    meta.delete_file(file.id, soon())
    with pytest.raises(NotFound):
        meta.file(file.id, soon())
    meta.undelete_file(file.id, soon())
    assert meta.file(file.id, soon()).name == "new"
    [stored] = meta.commit_files([new_file((5, 3))], soon())
    assert meta.file(stored.id, soon()).slices[1].nodes == (1, 2)
    run_sql(metadb_url, "UPDATE slice SET nodes = '{1,3}' WHERE ordinal = 1")
    assert [piece.nodes for piece in meta.file(stored.id, soon()).slices] == [(1, 2), (1, 3)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_name_of_any_characters_reads_back_as_it_was(meta: MetaDB, count: int) -> None:
    name = "\\ \"{'},é\n\U0001f600 NULL {}"
    for file in meta.commit_files([new_file(name=name) for _ in range(count)], soon()):
        assert meta.file(file.id, soon()).name == name


def test_a_file_that_was_never_committed_is_not_found(meta: MetaDB) -> None:
    meta.commit_files([new_file()], soon())
    with pytest.raises(NotFound):
        meta.file(uuid4(), soon())


def test_files_of_one_request_come_back_in_its_order(meta: MetaDB) -> None:
    files = [new_file(name=f"{n}") for n in range(20)]
    committed = meta.commit_files(files, soon())
    assert [file.id for file in committed] == [file.id for file in files]
    assert [meta.file(file.id, soon()).name for file in files] == [file.name for file in files]


def test_no_files_are_no_transaction(meta: MetaDB) -> None:
    assert meta.commit_files([], soon()) == []


def test_files_of_one_request_are_committed_all_or_none(meta: MetaDB) -> None:
    taken = new_file()
    meta.commit_files([taken], soon())
    fine, clashing = new_file(), dataclasses.replace(new_file(), slices=taken.slices)
    with pytest.raises(DistfsError):
        meta.commit_files([fine, clashing], soon())
    for file in (fine, clashing):
        with pytest.raises(NotFound):
            meta.file(file.id, soon())


def test_committing_a_file_again_is_the_same_commit(meta: MetaDB, metadb_url: str) -> None:
    first, second = new_file(), new_file((1, 2))
    [once] = meta.commit_files([first], soon())
    again = meta.commit_files([first, second], soon())
    assert again[0] == once
    assert meta.file(second.id, soon()) == again[1]
    assert run_sql(metadb_url, "SELECT count(*) FROM slice") == [[3]]


def _without_first_slice(file: NewFile) -> NewFile:
    return dataclasses.replace(file, slices=file.slices[1:])


def _reversed(file: NewFile) -> NewFile:
    return dataclasses.replace(file, slices=file.slices[::-1])


def _longer(file: NewFile) -> NewFile:
    return dataclasses.replace(file, size=file.size + 1)


def _with_nodes(*nodes: int) -> NewFile:
    file = new_file()
    return dataclasses.replace(file, slices=(dataclasses.replace(file.slices[0], nodes=nodes),))


@pytest.mark.parametrize(
    "file",
    [
        _without_first_slice(new_file((5, 5))),
        _without_first_slice(new_file((0, 5))),
        _reversed(new_file((5, 5))),
        _longer(new_file()),
        _with_nodes(1),
        _with_nodes(1, 1),
        _with_nodes(0, 0),
        _with_nodes(1, 2, 3),
    ],
    ids=[
        "lacks bytes",
        "lacks a slice",
        "unordered",
        "longer",
        "narrow",
        "twice on a node",
        "nowhere",
        "wide",
    ],
)
def test_a_file_that_could_not_be_read_back_is_never_committed(meta: MetaDB, file: NewFile) -> None:
    with pytest.raises(DistfsError, match="not complete"):
        meta.commit_files([new_file(), file], soon())
    assert meta.list_files(None, 10, soon()) == []


def test_a_degraded_write_is_committed_with_nobody_in_the_place_of_the_missing_fragment(meta: MetaDB) -> None:
    file = _with_nodes(7, 0)
    meta.commit_files([file], soon())
    assert meta.file(file.id, soon()).slices[0].nodes == (7, 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../../etc/passwd",
        "naïve 文件 🎉.txt",
        "a'b\"c\\d;--",
        ":name $1 %s {}",
        "\x01\x7f\n\r\t",
        "null",
    ],
)
def test_any_text_is_kept_as_a_file_name(meta: MetaDB, name: str) -> None:
    file = new_file(name=name)
    assert meta.commit_files([file], soon())[0].name == name
    assert meta.file(file.id, soon()).name == name


def test_what_text_cannot_hold_becomes_the_replacement_character(meta: MetaDB) -> None:
    file = new_file(name="a\0b\udcffc\ud83dd")
    assert meta.commit_files([file], soon())[0].name == "a�b�c�d"
    assert meta.file(file.id, soon()).name == "a�b�c�d"


def test_a_name_is_bounded_in_bytes_of_utf_8(meta: MetaDB) -> None:
    longest = "é" * (MAX_NAME_BYTES // 2)
    file = new_file(name=longest)
    meta.commit_files([file], soon())
    assert meta.file(file.id, soon()).name == longest
    with pytest.raises(Refused, match=f"longer than {counted(MAX_NAME_BYTES, 'byte')}"):
        storable_name(longest + "x")
    with pytest.raises(Refused, match=f"longer than {counted(MAX_NAME_BYTES, 'byte')}"):
        meta.commit_files([new_file(), new_file(name=longest + "x")], soon())


def test_a_content_type_is_bounded(meta: MetaDB) -> None:
    fits = dataclasses.replace(new_file(), content_type="x" * MAX_TYPE_BYTES)
    assert meta.commit_files([fits], soon())[0].content_type == fits.content_type
    with pytest.raises(Refused, match="content type"):
        meta.commit_files([dataclasses.replace(new_file(), content_type=fits.content_type + "x")], soon())


def test_walking_the_list_meets_every_file_once(meta: MetaDB) -> None:
    files = meta.commit_files([new_file(name=f"{n}") for n in range(25)], soon())
    seen: list[UUID] = []
    after: UUID | None = None
    while page := meta.list_files(after, 10, soon()):
        assert len(page) <= 10
        assert all(file.slices == () for file in page)
        seen += [file.id for file in page]
        after = seen[-1]
    assert seen == sorted(file.id for file in files)


def test_a_deleted_file_is_gone_for_readers_at_once(meta: MetaDB) -> None:
    kept, file = meta.commit_files([new_file(), new_file((1, 2))], soon())
    meta.delete_file(file.id, soon())
    with pytest.raises(NotFound):
        meta.file(file.id, soon())
    assert [f.id for f in meta.list_files(None, 10, soon())] == [kept.id]
    with pytest.raises(NotFound):
        meta.delete_file(file.id, soon())
    with pytest.raises(NotFound):
        meta.delete_file(uuid4(), soon())


def test_the_trash_still_knows_where_the_fragments_are(meta: MetaDB, metadb_url: str) -> None:
    file = new_file((1, 2))
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    rows = run_sql(
        metadb_url, "SELECT id, nodes FROM trash_slice WHERE file_id = :id ORDER BY ordinal", id=file.id
    )
    assert rows == [[piece.id, list(piece.nodes)] for piece in file.slices]
    assert run_sql(metadb_url, "SELECT count(*) FROM slice") == [[0]]
    [[age]] = run_sql(metadb_url, "SELECT extract(epoch FROM now() - deleted_at)::float8 FROM trash")
    assert 0 <= age < 60


def test_an_undeleted_file_is_what_it_was_in_every_column(meta: MetaDB, metadb_url: str) -> None:
    [file] = meta.commit_files([new_file((1, 2, 3))], soon())
    run_sql(
        metadb_url,
        "UPDATE file SET owner = 'anna', visibility = 'link', expires_at = now() + interval '1 day'",
    )
    before = run_sql(metadb_url, "SELECT * FROM file"), run_sql(metadb_url, "SELECT * FROM slice ORDER BY id")
    meta.delete_file(file.id, soon())
    meta.undelete_file(file.id, soon())
    after = run_sql(metadb_url, "SELECT * FROM file"), run_sql(metadb_url, "SELECT * FROM slice ORDER BY id")
    assert after == before
    assert meta.file(file.id, soon()) == dataclasses.replace(file, owner="anna", visibility="link")
    assert run_sql(metadb_url, "SELECT id FROM trash UNION ALL SELECT id FROM trash_slice") == []
    with pytest.raises(NotFound, match="in the trash"):
        meta.undelete_file(file.id, soon())


def test_a_deleted_file_does_not_come_back_by_a_late_commit(meta: MetaDB) -> None:
    file = new_file()
    meta.commit_files([file], soon())
    meta.delete_file(file.id, soon())
    with pytest.raises(OutcomeUnknown, match="deleted while"):
        meta.commit_files([file], soon())
    with pytest.raises(NotFound):
        meta.file(file.id, soon())


def test_one_fragment_can_be_moved_by_compare_and_set(meta: MetaDB, metadb_url: str) -> None:
    file = new_file(policy=Policy(1, 2))
    meta.commit_files([file], soon())
    move = (
        "UPDATE slice SET nodes[CAST(:i AS int) + 1] = :new "
        "WHERE id = :id AND nodes[CAST(:i AS int) + 1] = :old RETURNING nodes"
    )
    piece = file.slices[0]
    assert run_sql(metadb_url, move, i=1, new=9, old=2, id=piece.id) == [[[1, 9, 3]]]
    assert run_sql(metadb_url, move, i=1, new=8, old=2, id=piece.id) == []
    assert meta.file(file.id, soon()).slices[0].nodes == (1, 9, 3)


@pytest.mark.parametrize("count", [1, 16, 17, 40])  # some are looked up one by one, and more all at once
@pytest.mark.parametrize("state", ["active", "readonly", "draining", "forgotten"])
def test_no_slice_of_a_commit_names_a_node_that_leaves(
    meta: MetaDB, metadb_url: str, count: int, state: str
) -> None:
    register(meta, 3)
    if state == "forgotten":
        run_sql(metadb_url, "DELETE FROM node WHERE id = 3")
    else:
        run_sql(metadb_url, "UPDATE node SET state = :state WHERE id = 3", state=state)
    file = placed(*[(1, 2)] * (count - 1), (2, 3))
    if state in ("draining", "forgotten"):
        with pytest.raises(NodesLeft):
            meta.commit_files([file], soon())
        with pytest.raises(NotFound):
            meta.file(file.id, soon())
    else:
        assert meta.commit_files([file], soon()) == [meta.file(file.id, soon())]
    degraded = placed(*[(1, 2)] * (count - 1), (0, 1))
    assert meta.commit_files([degraded], soon()) == [meta.file(degraded.id, soon())], "nobody keeps one of it"


def test_the_release_before_commits_beside_this_one(meta: MetaDB, metadb_url: str) -> None:
    """To nodes that stay only, and each sees the files of the other."""
    register(meta, 2)
    first, second = new_file((1, 2)), new_file((3,))

    [[id, created_at]] = commit_as_before(metadb_url, first)
    assert id == first.id
    assert meta.commit_files([first], soon()) == [meta.file(first.id, soon())]
    assert meta.file(first.id, soon()).created_at == created_at
    assert meta.file(first.id, soon()).slices == first.slices
    meta.commit_files([second], soon())
    assert commit_as_before(metadb_url, second) == []
    UpkeepDB(meta).set_node_state(1, "draining", soon())
    with pytest.raises(DatabaseError, match="DF002"):
        commit_as_before(metadb_url, new_file())
