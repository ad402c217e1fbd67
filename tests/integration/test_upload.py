"""The way in: every size, every policy; and when it fails, at any point, nothing is left."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import (
    BodyCutShort,
    Cancelled,
    ClientGone,
    DistfsError,
    NodesLeft,
    OutcomeUnknown,
    Refused,
    TooLarge,
    TooSlow,
    Unavailable,
)
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import MAX_NAME_BYTES, File, FragmentId, NewFile, Policy
from distfs.services import build
from distfs.storage.disk.space import Space
from distfs.transfer.rebuild import rebuild
from tests.contract.litter import eventually, temp_files
from tests.contract.samples import random_bytes, soon
from tests.integration.byte_ways import BLOCK, COPIES, SLICE, Source, Ways, byte_ways, header_of
from tests.postgres import run_sql

THREE, CODED = Policy(1, 2), Policy(2, 1)
SIZES = [
    0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, SLICE - 1, SLICE, SLICE + 1, SLICE + BLOCK,
    2 * SLICE - 1, 2 * SLICE, 2 * SLICE + 1, 7 * SLICE + 3 * BLOCK + 5,
]  # fmt: skip


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()


def files(ways: Ways) -> list[File]:
    return ways.services.meta.list_files(None, 100, soon())


def assert_nothing_stored(ways: Ways) -> None:
    assert files(ways) == []
    assert ways.fragments() == []
    ways.assert_clean()


# --- what arrives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(1, 0), COPIES, THREE, CODED], ids=str)
def test_files_of_every_size_arrive(ways: Ways, policy: Policy) -> None:
    for size in SIZES:
        for hint in (None, size):
            data = random_bytes(size, size)
            file = ways.upload(data, policy, hint=hint)
            assert (file.size, file.sha256) == (size, hashlib.sha256(data).digest())
            assert [s.size for s in file.slices] == [min(SLICE, size - at) for at in range(0, size, SLICE)]
            assert [s.ordinal for s in file.slices] == list(range(len(file.slices)))
            assert all(len(s.nodes) == policy.width == len(set(s.nodes)) for s in file.slices)
            assert ways.services.meta.file(file.id, soon()) == file
            assert ways.download(file) == data


def test_a_full_slice_is_durable_before_the_next_byte_comes(ways: Ways) -> None:
    """A client that pauses there does not keep it from being safe."""
    data = random_bytes(2 * SLICE + 1)

    def is_durable() -> None:
        eventually(lambda: len(ways.fragments()) == 2, "the first slice is safe")

    file = ways.upload(Source(data, {SLICE + 1: is_durable}), hint=len(data))
    assert ways.download(file) == data


@pytest.mark.parametrize("size", [2 * SLICE, 2 * SLICE + 1])
@pytest.mark.parametrize("known", [True, False])
def test_the_last_slice_alone_says_that_it_is(ways: Ways, size: int, known: bool) -> None:
    file = ways.upload(random_bytes(size), hint=size if known else None)
    for piece in file.slices:
        for index, node in enumerate(piece.nodes):
            table = ways.nodes[node].store.stat(FragmentId(piece.id, index), soon())
            assert table.last == (piece is file.slices[-1])


@pytest.mark.parametrize("hint", [0, 1, BLOCK, 100 * SLICE])
def test_a_wrong_size_hint_does_no_harm(ways: Ways, hint: int) -> None:
    data = random_bytes(3 * SLICE + 5)
    assert ways.download(ways.upload(data, hint=hint)) == data


@pytest.mark.parametrize(
    ("size", "hint", "threads"),
    [(BLOCK, BLOCK, False), (BLOCK, None, False), (BLOCK + 1, BLOCK, True), (BLOCK + 1, None, True)],
)
def test_a_file_of_just_one_block_is_sent_by_no_thread(
    ways: Ways, size: int, hint: int | None, threads: bool
) -> None:
    data = random_bytes(size)
    file = ways.upload(data, hint=hint)
    assert ways.download(file) == data
    assert file.sha256 == hashlib.sha256(data).digest()
    assert bool(ways.services.uploader.resources.executor._threads) == threads


def test_every_fragment_says_what_it_is_part_of(ways: Ways) -> None:
    """So that MetaDB could be rebuilt from the disks alone."""
    name = "Größe \N{ELEPHANT} " + "x" * 1000
    file = ways.upload(random_bytes(2 * SLICE + 1), CODED, name=name)
    for piece in file.slices:
        for index, path in ways.paths(file, piece.ordinal).items():
            head = header_of(path)
            assert (head.file, head.slice, head.ordinal, head.index) == (
                file.id,
                piece.id,
                piece.ordinal,
                index,
            )
            assert (head.policy, head.block_size, head.content_type) == (CODED, BLOCK, "text/x")
            assert head.name == name
            store = ways.nodes[piece.nodes[index]].store
            table = store.stat(head.id, soon())
            assert table.last == (piece.ordinal == 2)
            assert table.slice_size == piece.size
            assert table.digest(BLOCK) == piece.digest
            assert store.verify(head.id, soon()) == ()


def test_files_of_one_request_are_committed_together(ways: Ways) -> None:
    data = [random_bytes(size, size) for size in (0, 10, 3 * SLICE)]
    with ways.services.uploader.begin(soon()) as session:
        for number, each in enumerate(data):
            session.add(Source(each), name=f"{number}", content_type="a/b", policy=COPIES)
            assert files(ways) == [], "nothing can be read before the commit"
        committed = session.commit()
    assert [f.name for f in committed] == ["0", "1", "2"]
    assert [ways.download(f) for f in committed] == data


def test_many_uploads_share_a_small_budget_of_memory(metadb_url: str, tmp_path: Path) -> None:
    with byte_ways(metadb_url, tmp_path, window=4 * BLOCK, memory_budget=4 * BLOCK) as ways:
        data = [random_bytes(size, size) for size in (0, 100, BLOCK, SLICE, 2 * SLICE + 7, 5 * SLICE)] * 2
        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(ways.upload, data))
        assert [ways.download(file) for file in done] == data
        ways.assert_clean()


# --- what fails in the middle leaves nothing -----------------------------------------------------------------


OFFSETS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, SLICE, SLICE + 1, 3 * SLICE - 1, 4 * SLICE]


@pytest.mark.parametrize("kind", [BodyCutShort, ClientGone, TooLarge])
@pytest.mark.parametrize("policy", [COPIES, CODED], ids=str)
def test_a_source_that_fails_anywhere_leaves_nothing(
    ways: Ways, policy: Policy, kind: type[DistfsError]
) -> None:
    for offset in OFFSETS:
        source = Source(random_bytes(4 * SLICE), {offset: _raises(kind("on purpose"))})
        with pytest.raises(kind, match="on purpose"):
            ways.upload(source, policy)
    assert_nothing_stored(ways)


def test_a_bug_in_a_source_leaves_nothing_either(ways: Ways) -> None:
    with pytest.raises(ZeroDivisionError):
        ways.upload(Source(random_bytes(4 * SLICE), {2 * SLICE: lambda: 1 // 0}))
    assert_nothing_stored(ways)


def test_a_second_file_that_fails_takes_the_first_with_it(ways: Ways) -> None:
    with pytest.raises(BodyCutShort):
        _upload_two(ways)
    assert_nothing_stored(ways)


def _upload_two(ways: Ways) -> None:
    with ways.services.uploader.begin(soon()) as session:
        session.add(Source(random_bytes(SLICE)), name="1", content_type="a/b", policy=COPIES)
        failing = Source(random_bytes(SLICE), {BLOCK: _raises(BodyCutShort("cut"))})
        session.add(failing, name="2", content_type="a/b", policy=COPIES)
        session.commit()


def test_a_session_left_without_a_commit_leaves_nothing(ways: Ways) -> None:
    with ways.services.uploader.begin(soon()) as session:
        session.add(Source(random_bytes(2 * SLICE)), name="x", content_type="a/b", policy=COPIES)
        assert len(ways.fragments()) == 4
    assert_nothing_stored(ways)


def test_a_deadline_that_passes_in_the_middle_leaves_nothing(ways: Ways) -> None:
    began = time.monotonic()
    passed = [0.0]
    source = Source(random_bytes(9 * SLICE), {3 * SLICE: lambda: passed.append(1000.0)})
    deadline = Deadline(300, clock=lambda: time.monotonic() - began + passed[-1])
    with pytest.raises((TooSlow, Unavailable)):
        with ways.services.uploader.begin(deadline) as session:
            session.add(source, name="x", content_type="a/b", policy=COPIES)
    assert_nothing_stored(ways)


def _raises(error: Exception) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def test_a_refused_commit_leaves_nothing(ways: Ways) -> None:
    with pytest.raises(Refused, match="name"):
        ways.upload(random_bytes(2 * SLICE), name="x" * (MAX_NAME_BYTES + 1))
    assert_nothing_stored(ways)


def test_a_commit_of_unknown_outcome_removes_nothing(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be there: its bytes must not go."""
    commit = MetaDB.commit_files
    committed: list[File] = []

    def lost(self: MetaDB, new: list[NewFile], deadline: Deadline, *whose: Any) -> list[File]:
        committed.extend(commit(self, new, deadline, *whose))
        raise OutcomeUnknown("MetaDB was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MetaDB, "commit_files", lost)
        with pytest.raises(OutcomeUnknown):
            ways.upload(random_bytes(2 * SLICE))
    assert ways.download(committed[0]) == random_bytes(2 * SLICE)


# --- nodes that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, SLICE, 5 * SLICE + 3])
def test_a_node_that_is_dead_from_the_start_costs_no_redundancy(ways: Ways, size: int) -> None:
    dead = next(iter(ways.nodes))
    ways.kill(dead)
    for _ in range(4):
        file = ways.upload(random_bytes(size))
        for piece in file.slices:
            assert dead not in piece.nodes
            assert len(set(piece.nodes) - {0}) == 2
        assert ways.download(file) == random_bytes(size)


@pytest.mark.parametrize("policy", [COPIES, CODED], ids=str)
@pytest.mark.parametrize("offset", [BLOCK, SLICE + 2 * BLOCK, 3 * SLICE])
def test_a_node_killed_in_the_middle_of_a_slice_costs_no_redundancy(
    metadb_url: str, tmp_path: Path, policy: Policy, offset: int
) -> None:
    with byte_ways(metadb_url, tmp_path, count=5) as ways:
        data = random_bytes(5 * SLICE)
        killed: list[int] = []

        def kill_one() -> None:
            busy = [n for n, s in ways.nodes.items() if temp_files(s.store.folder)]
            killed.append(busy[0] if busy else next(iter(ways.nodes)))
            ways.kill(killed[0])

        file = ways.upload(Source(data, {offset: kill_one}), policy)
        for piece in file.slices:
            assert len(set(piece.nodes) - {0}) == policy.width
        assert ways.download(file) == data
        ways.assert_clean()


def test_with_too_few_nodes_an_upload_is_refused_and_leaves_nothing(
    ways: Ways, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "distfs.upload")
    first, second, _ = ways.nodes
    ways.kill(first)
    ways.kill(second)
    for size in (100, 3 * SLICE):
        with pytest.raises(Unavailable):
            ways.upload(random_bytes(size))
        eventually(lambda: ways.fragments() == [], "what was written is removed")
    assert files(ways) == []
    assert "orphan sweep" not in caplog.text, "who took nothing has nothing to take away"


def test_all_nodes_killed_in_the_middle_end_the_upload_soon(ways: Ways) -> None:
    def kill_all() -> None:
        for node in ways.nodes:
            ways.kill(node)

    source = Source(random_bytes(400 * SLICE), {5 * SLICE: kill_all})
    with pytest.raises(Unavailable):
        ways.upload(source)
    assert source.given < 350 * SLICE, "the rest of the file is not read"
    assert files(ways) == []


def test_a_full_node_is_left_out(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    full = next(iter(ways.nodes))
    store = ways.nodes[full].store
    nothing = Space(1 << 40, 1 << 40, left=0, reserve=0, files=None, metadb=False)
    monkeypatch.setattr(store, "_space", lambda: nothing)
    store._spare = 0  # of a look before
    for size in (10, 3 * SLICE):
        file = ways.upload(random_bytes(size))
        assert all(full not in piece.nodes and 0 not in piece.nodes for piece in file.slices)
        assert ways.download(file) == random_bytes(size)


# --- nodes that are lost after they acknowledged -------------------------------------------------------------


def slow_upload(ways: Ways, data: bytes, meanwhile: Callable[[File | NewFile], object]) -> File:
    """Everything has landed; ``meanwhile`` happens, and then a while passes, before the commit."""
    with ways.services.uploader.begin(soon()) as session:
        landed = session.add(Source(data), name="x", content_type="text/x", policy=COPIES)
        meanwhile(landed)
        pause = threading.Event()
        pause.wait(1.1)
        [file] = session.commit()
        return file


def take_away(ways: Ways, node: int, how: str) -> None:
    """As MetaDB tells it: down, being drained, or forgotten."""
    url = ways.services.config.metadb.url
    change = {
        "down": "UPDATE node SET heartbeat_at = '2000-01-01' WHERE id = :id",
        "draining": "UPDATE node SET state = 'draining' WHERE id = :id",
        "forgotten": "DELETE FROM node WHERE id = :id",
    }[how]
    run_sql(url, change, id=node)
    if how != "draining":
        ways.kill(node)


@pytest.mark.parametrize("how", ["down", "draining", "forgotten"])
@pytest.mark.parametrize("size", [100, 3 * SLICE + 5])
def test_what_a_node_kept_that_is_gone_since_is_on_another_when_the_file_is_committed(
    ways: Ways, how: str, size: int
) -> None:
    data, lost = random_bytes(size), []

    def meanwhile(landed: NewFile) -> None:
        lost.append(landed.slices[0].nodes[0])
        take_away(ways, lost[0], how)

    file = slow_upload(ways, data, meanwhile)
    for piece in file.slices:
        assert lost[0] not in piece.nodes
        assert all(piece.nodes), "at full redundancy"
    assert ways.download(file) == data


def test_a_file_whose_slice_was_lost_before_the_commit_is_refused_and_nothing_stays(ways: Ways) -> None:
    def meanwhile(landed: NewFile) -> None:
        for node in landed.slices[0].nodes:
            take_away(ways, node, "down")

    with pytest.raises(Unavailable, match="storage nodes were lost while the file was written"):
        slow_upload(ways, random_bytes(3 * SLICE), meanwhile)
    assert files(ways) == []


def test_a_request_given_up_while_a_lost_fragment_is_made_anew_is_no_lack_of_nodes(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    with soon().scope() as scope, ways.services.uploader.begin(scope) as session:

        def given_up(*args: Any) -> None:
            scope.cancel("the client hung up")
            rebuild(*args)

        monkeypatch.setattr("distfs.transfer.upload.rebuild", given_up)
        source = Source(random_bytes(3 * SLICE))
        landed = session.add(source, name="x", content_type="text/x", policy=COPIES)
        take_away(ways, landed.slices[0].nodes[0], "down")
        threading.Event().wait(1.1)
        with pytest.raises(Cancelled, match="hung up"):
            session.commit()
        assert not session._failed_nodes
    assert files(ways) == []


def test_a_node_that_is_drained_while_another_is_made_up_for_is_not_named(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = ways.nodes
    began_to_drain: list[int] = []

    def then(file: NewFile) -> None:
        kept, other = file.slices[0].nodes
        [target] = {first, second, third} - {kept, other}
        store, url = ways.nodes[target].store, ways.services.config.metadb.url
        publish = store.publish
        take_away(ways, kept, "draining")

        def publish_late(*what: Any) -> None:
            publish(*what)
            run_sql(url, "UPDATE node SET state = 'active' WHERE id = :id", id=kept)
            take_away(ways, other, "draining")
            began_to_drain.append(other)
            threading.Event().wait(1.1)

        monkeypatch.setattr(store, "publish", publish_late)

    file = slow_upload(ways, random_bytes(100), then)
    assert began_to_drain
    assert not set(began_to_drain) & set(file.slices[0].nodes)
    assert all(file.slices[0].nodes), "at full redundancy"


@contextmanager
def unreadable_nodes(url: str) -> Iterator[None]:
    """MetaDB does not say which nodes there are, until somebody has asked in vain."""
    asked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%heartbeat_age%'"
    parsed = MetaURL.parse(url)
    with (
        ThreadPoolExecutor(1) as threads,
        closing(Link(parsed, parsed.hosts[0], soon(), statement_timeout=0)) as link,
    ):
        link.raw.run("BEGIN; LOCK TABLE node IN ACCESS EXCLUSIVE MODE")

        def end() -> None:
            eventually(lambda: run_sql(url, asked), "somebody asks", 30)
            eventually(lambda: not run_sql(url, asked), "and is not told", 30)
            link.raw.run("ROLLBACK")

        ended = threads.submit(end)
        yield
        ended.result()


def test_a_node_that_began_to_drain_is_not_named_though_nobody_could_be_asked_before_the_commit(
    ways: Ways, metadb_url: str
) -> None:
    config = ways.services.config
    impatient = build(replace(config, metadb=replace(config.metadb, statement_timeout=Seconds(1))))
    data = random_bytes(2 * SLICE)
    with closing(impatient), ExitStack() as stack:
        drained = []

        def meanwhile(landed: NewFile) -> None:
            drained.append(landed.slices[0].nodes[0])
            take_away(ways, drained[0], "draining")
            stack.enter_context(unreadable_nodes(metadb_url))

        file = slow_upload(Ways(impatient, ways.nodes), data, meanwhile)
        for piece in file.slices:
            assert drained[0] not in piece.nodes
            assert all(piece.nodes), "at full redundancy"
    assert files(ways) == [replace(file, slices=())]
    assert ways.download(file) == data


@pytest.mark.parametrize("how", ["draining", "forgotten"])
def test_metadb_takes_no_commit_that_names_a_node_that_leaves(ways: Ways, how: str) -> None:
    """Not even from who looked a moment ago; one that was committed before is the same as ever."""
    meta = ways.services.meta
    before = ways.upload(random_bytes(100))
    leaving = before.slices[0].nodes[0]
    take_away(ways, leaving, how)
    again, other = uuid4(), uuid4()
    anew = replace(before, id=again, slices=(replace(before.slices[0], id=other),))
    with pytest.raises(
        NodesLeft, match=rf"nodes \{{{leaving}\}} are being drained or were forgotten"
    ) as raised:
        meta.commit_files([anew], soon())
    assert (raised.value.status, raised.value.retry_after) == (503, 5)
    assert meta.commit_files([before], soon()) == [before]
    assert [file.id for file in files(ways)] == [before.id]


def test_no_upload_may_take_longer_than_the_orphan_sweep_leaves_it(ways: Ways) -> None:
    services = ways.services
    ttl = services.config.upkeep.upload_ttl
    unbounded = services.transfer_deadline(None, None).remaining()
    assert services.upload_deadline(None, None).remaining() <= ttl < unbounded
    assert services.upload_deadline(1, None).remaining() < ttl
