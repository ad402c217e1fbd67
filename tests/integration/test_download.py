"""The way out: any range; and whatever is lost or damaged, the right bytes or none."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, TooSlow, Unavailable
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.model import File, FragmentId, Policy, Slice
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader
from tests.contract.nodes import KillableServer
from tests.contract.samples import header, put, random_bytes, soon
from tests.faults.patch import unplanned
from tests.integration.byte_ways import BLOCK, COPIES, SLICE, Ways, byte_ways, flip, header_of, register
from tests.postgres import database_url, run_sql

CODED = Policy(2, 1)
SIZE = 3 * SLICE + BLOCK + 77
DATA = random_bytes(SIZE)


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """For tests that harm only the fragments of a file of their own."""
    run_sql(postgres.url, "CREATE DATABASE shared_download TEMPLATE migrated")
    folder = tmp_path_factory.mktemp("shared")
    with byte_ways(database_url(postgres, "shared_download"), folder) as ways:
        yield ways
        ways.assert_clean()


@pytest.fixture(params=[COPIES, CODED], ids=str)
def own(shared: Ways, request: pytest.FixtureRequest) -> File:
    """A file of the test's own among the shared nodes."""
    return shared.upload(DATA, request.param)


@pytest.fixture(params=[COPIES, CODED], ids=str)
def file(ways: Ways, request: pytest.FixtureRequest) -> File:
    return ways.upload(DATA, request.param)


def reads(ways: Ways, file: File) -> None:
    """It is the right file, also when something is known of its nodes already."""
    for _ in range(2):
        assert ways.download(file) == DATA


def first_read(piece: Slice, policy: Policy) -> int:
    """The index of the fragment that is asked for before the others."""
    return piece.id.int % len(piece.nodes) if policy.k == 1 else 0


# --- ranges ---------------------------------------------------------------------------------------------------


def test_any_range_is_read(shared: Ways, own: File) -> None:
    edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, SIZE - 1, SIZE]
    ranges = [(a, b) for a in edges for b in edges if a <= b]
    random = Random(5)
    ranges += [tuple(sorted((random.randint(0, SIZE), random.randint(0, SIZE)))) for _ in range(40)]  # type: ignore[misc]
    for start, stop in ranges:
        assert shared.download(own, start, stop) == DATA[start:stop], (start, stop)


def test_views_are_blocks_and_never_empty(shared: Ways, own: File) -> None:
    lengths = [len(v) for v in shared.services.downloader.read(own, 10, SIZE, soon())]
    assert sum(lengths) == SIZE - 10
    assert all(0 < length <= BLOCK for length in lengths)


def test_a_range_asks_only_for_the_slices_it_touches(shared: Ways, own: File) -> None:
    for ordinal in (0, 3):
        for path in shared.paths(own, ordinal).values():
            path.unlink()
    assert shared.download(own, SLICE, 3 * SLICE) == DATA[SLICE : 3 * SLICE]
    with pytest.raises(Corrupt):
        shared.download(own, SLICE - 1, SLICE + 1)


@pytest.mark.parametrize("size", [BLOCK // 2, 2 * BLOCK])
def test_a_file_of_other_blocks_than_the_service_writes_now_is_read(
    shared: Ways, own: File, size: int
) -> None:
    pool = BlockPool(size, 2)
    downloader = Downloader(shared.services.directory, pool)
    for start, stop in ((0, SIZE), (BLOCK + 1, SLICE + 5)):
        read = b"".join(map(bytes, downloader.read(own, start, stop, soon())))
        assert read == DATA[start:stop]
    assert pool.usage().blocks == 0


def test_an_empty_file_asks_nobody(ways: Ways) -> None:
    file = ways.upload(b"")
    for node in ways.nodes:
        ways.kill(node)
    assert ways.download(file) == b""


def test_a_reader_that_stops_in_the_middle_holds_nothing(shared: Ways, own: File) -> None:
    for count in (0, 1, 4, 6):
        reading = shared.services.downloader.read(own, 0, SIZE, soon())
        for _ in range(count):
            next(reading)
        reading.close()  # type: ignore[attr-defined]
    shared.assert_clean()
    assert shared.download(own) == DATA


def test_a_deadline_that_has_passed_ends_the_reading(ways: Ways, file: File) -> None:
    with pytest.raises((TooSlow, Unavailable)):
        list(ways.services.downloader.read(file, 0, SIZE, Deadline(0)))


# --- one fragment of a slice is lost or damaged: nobody notices --------------------------------------------


def flip_at(offset: int) -> Callable[[Path], None]:
    return lambda path: flip(path, offset)


def cut_to(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


HARM: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "header flipped": flip_at(50),
    "magic flipped": flip_at(0),
    "first cell flipped": flip_at(400),
    "a cell in the middle flipped": lambda path: flip(path, path.stat().st_size // 2),
    "table flipped": flip_at(-70),
    "footer flipped": flip_at(-20),
    "last byte flipped": flip_at(-1),
    "cut to nothing": cut_to(0),
    "cut in the header": cut_to(40),
    "cut in the cells": cut_to(1000),
    "the last byte cut": cut_to(-1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_one_bad_fragment_of_every_slice_changes_nothing(
    shared: Ways, own: File, harm: Callable[[Path], object]
) -> None:
    for piece in own.slices:
        paths = shared.paths(own, piece.ordinal)
        harm(paths[(first_read(piece, own.policy) + piece.ordinal) % len(paths)])
    reads(shared, own)


def test_swapped_fragments_change_nothing(shared: Ways, own: File) -> None:
    """Of two slices on one node, each under the other's name."""
    held: dict[int, list[Path]] = {}
    for piece in own.slices:
        for index, path in shared.paths(own, piece.ordinal).items():
            held.setdefault(piece.nodes[index], []).append(path)
    paths = max(held.values(), key=len)
    one, other = paths[0], paths[1]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    reads(shared, own)


def test_a_stale_fragment_changes_nothing(ways: Ways) -> None:
    """Whole and valid in itself, under the right name, but not what MetaDB's digest vouches for."""
    file = ways.upload(DATA)
    for piece in file.slices:
        index = first_read(piece, COPIES)
        head = header_of(ways.paths(file, piece.ordinal)[index])
        put(ways.nodes[piece.nodes[index]].store, head, random_bytes(piece.size, 99))
    reads(ways, file)


def test_cells_that_agree_with_a_forged_table_are_not_believed(ways: Ways, metadb_url: str) -> None:
    """All copies replaced by whole ones of other bytes: there is nothing left to send."""
    file = ways.upload(DATA)
    for piece in file.slices:
        for index, path in ways.paths(file, piece.ordinal).items():
            store = ways.nodes[piece.nodes[index]].store
            put(store, header_of(path), random_bytes(piece.size, 99))
            assert store.discard(FragmentId(piece.id, index), 0, soon())  # what was replaced would heal it
    came, error = ways.read_until_it_fails(file)
    assert came == b""
    assert isinstance(error, Corrupt)


def test_every_fragment_damaged_in_another_cell_is_still_a_whole_file(shared: Ways, own: File) -> None:
    """Only the bad cell is taken elsewhere, not the fragment."""
    cell = BLOCK // own.policy.k
    for piece in own.slices:
        for index, path in shared.paths(own, piece.ordinal).items():
            if (index + 1) * BLOCK <= piece.size:
                store = shared.nodes[piece.nodes[index]].store
                start = path.stat().st_size - store.stat(FragmentId(piece.id, index), soon()).offsets[-1]
                start -= 21 * -(-piece.size // BLOCK) + 54
                flip(path, start + index * cell + 5)
    reads(shared, own)


@pytest.mark.parametrize("preferred", [True, False])
def test_one_copy_is_always_the_first_and_its_damage_is_noted_for_repair(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, preferred: bool
) -> None:
    """The other is in no page cache, and what is wrong with it is for scrub to find."""
    file = ways.upload(DATA[:SLICE])
    noted: list[tuple[FragmentId, int]] = []
    note = lambda fragment, node, error: noted.append((fragment, node))  # noqa: E731
    monkeypatch.setattr(ways.services.downloader, "_note_damage", note if preferred else unplanned(note))
    [piece] = file.slices
    index = first_read(piece, COPIES) if preferred else 1 - first_read(piece, COPIES)
    ways.paths(file)[index].unlink()
    for _ in range(6):
        assert ways.download(file) == DATA[:SLICE]
    assert noted == [(FragmentId(piece.id, index), piece.nodes[index])] * (6 if preferred else 0)


# --- nodes that go ---------------------------------------------------------------------------------------------


def test_any_one_node_may_be_dead(metadb_url: str, tmp_path: Path) -> None:
    with byte_ways(metadb_url, tmp_path) as ways:
        copies, coded = ways.upload(DATA, COPIES), ways.upload(DATA, CODED)
        ways.kill(next(iter(ways.nodes)))
        for _ in range(5):
            assert ways.download(copies) == ways.download(coded) == DATA


@pytest.mark.parametrize("blocks", [1, 2, 4, 6])
def test_a_node_killed_while_it_is_read_changes_nothing(ways: Ways, file: File, blocks: int) -> None:
    reading = ways.services.downloader.read(file, 0, SIZE, soon())
    came = b"".join(bytes(next(reading)) for _ in range(blocks))
    piece = file.slices[blocks * BLOCK // SLICE]  # of the next block
    ways.kill(piece.nodes[first_read(piece, file.policy)])
    came += b"".join(bytes(view) for view in reading)
    assert came == DATA


def test_a_node_that_listens_but_never_answers_is_left_for_another(metadb_url: str, tmp_path: Path) -> None:
    with byte_ways(metadb_url, tmp_path, count=2, stall=1) as ways:
        file = ways.upload(DATA)
        mute = ways.nodes[next(iter(ways.nodes))]
        mute.shutdown()  # the kernel still takes connections
        mute.cut()
        for _ in range(3):
            assert ways.download(file) == DATA


def test_nodes_that_came_back_at_other_ports_are_found_before_a_read_is_given_up(
    ways: Ways, file: File, tmp_path: Path
) -> None:
    """What the service knows of nodes may be old."""
    meta, directory = ways.services.meta, ways.services.directory
    with ExitStack() as stack:
        for number, server in list(ways.nodes.items()):
            ways.kill(number)
            meta.node_leave(server.store.node, server.address, soon())
            ways.nodes[number] = KillableServer("127.0.0.1", 0, server.store, server.config)
            thread = threading.Thread(target=ways.nodes[number].serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(ways.kill, number)
            assert register(ways.services, ways.nodes[number]) == number
        directory._list._read_at = time.monotonic()
        assert ways.download(file) == DATA


def test_metadb_may_go_away_while_a_file_is_read(ways: Ways, file: File) -> None:
    reading = ways.services.downloader.read(file, 0, SIZE, soon())
    came = bytes(next(reading))
    ways.services.directory._list._read_at = float("-inf")  # the list of nodes is old

    def gone(*_: object) -> None:
        raise Unavailable("MetaDB is away")

    ways.services.meta.nodes = gone  # type: ignore[method-assign,assignment]
    try:
        came += b"".join(bytes(view) for view in reading)
    finally:
        del ways.services.meta.nodes
    assert came == DATA


# --- too much is lost: an error, and no wrong byte before it -------------------------------------------------


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_with_every_fragment_bad_no_wrong_byte_is_sent(
    shared: Ways, own: File, harm: Callable[[Path], object]
) -> None:
    for path in shared.paths(own, 2).values():
        harm(path)
    for _ in range(3):
        came, error = shared.read_until_it_fails(own)
        assert DATA.startswith(came)
        assert len(came) >= 2 * SLICE
        assert len(came) < 3 * SLICE
        assert isinstance(error, Corrupt)
        assert str(own.slices[2].id) in str(error)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("all", "nothing is left of it"),
        ("some", "what is left of it is damaged"),
        ("none", "what is left of it is damaged"),
    ],
)
def test_what_is_damaged_and_what_is_gone_are_told_apart(
    ways: Ways, file: File, gone: str, told: str
) -> None:
    for at, path in enumerate(ways.paths(file, 2).values()):
        if gone == "all" or (gone == "some" and at):
            path.unlink()
        else:
            path.write_bytes(b"nothing of ours")
    _, error = ways.read_until_it_fails(file)
    assert isinstance(error, Corrupt)
    assert error.for_client.endswith(f"{told}; its operator is told")


def test_a_fragment_that_is_bad_is_named_as_people_write_it(
    ways: Ways, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "distfs.download")
    for path in ways.paths(file, 2).values():
        path.write_bytes(b"nothing of ours")
    ways.read_until_it_fails(file)
    piece = file.slices[2]
    assert f"fragment {piece.id}.0 on node {piece.nodes[0]} gives no block" in caplog.text
    assert "Remnant(" not in caplog.text


def test_with_too_many_nodes_dead_it_is_unavailable_not_corrupt(ways: Ways, file: File) -> None:
    for node in list(ways.nodes)[:2]:
        ways.kill(node)
    came, error = ways.read_until_it_fails(file)
    if error is None:  # both dead nodes had the parity or neither had a copy
        assert came == DATA
    else:
        assert DATA.startswith(came)
        assert type(error) is Unavailable
    ways.kill(list(ways.nodes)[2])
    _, error = ways.read_until_it_fails(file)
    assert type(error) is Unavailable


def test_a_dead_node_and_a_bad_copy_are_unavailable_until_the_node_is_back(ways: Ways) -> None:
    """Unknown is never missing."""
    file = ways.upload(DATA[:SLICE])
    ways.kill(file.slices[0].nodes[0])
    ways.paths(file)[1].unlink()
    _, error = ways.read_until_it_fails(file)
    assert type(error) is Unavailable


def test_a_fragment_of_another_cluster_under_the_right_name_is_not_believed(ways: Ways) -> None:
    file = ways.upload(DATA[:SLICE])
    for path in ways.paths(file).values():
        store = ways.nodes[file.slices[0].nodes[0]].store
        strange = put(store, header(block_size=BLOCK), DATA[:SLICE])
        shutil.copy(store.path(strange), path)
    _, error = ways.read_until_it_fails(file)
    assert isinstance(error, DistfsError)
