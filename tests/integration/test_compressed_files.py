"""Files whose blocks are compressed: on the disks, out again, in ranges, with damage, and made anew."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard

from distfs.commands.doctor import _compressed
from distfs.deadline import Deadline
from distfs.errors import NoZstd
from distfs.formats import compression, wire
from distfs.formats.coding import code_for
from distfs.formats.features import COMPRESSED
from distfs.formats.fragment import RAW, ZSTD, CellEntry, FragmentHeader, FragmentTable, checksum
from distfs.local.machine import Level
from distfs.model import Compression, File, FragmentId, Policy, Slice
from distfs.peers.client import NodeClient
from distfs.transfer.download import is_one_block
from distfs.transfer.rebuild import rebuild
from distfs.transfer.slice_plan import FileIdentity
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes
from tests.integration.byte_ways import Source, Ways, byte_ways
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import BytesSource, UpkeepCluster, drive, flip
from tests.service import BLOCK, SLICE

ZIPPED = Compression("zstd")
COPIES, CODED, WIDE = Policy(1, 1), Policy(2, 1), Policy(4, 2)
CHANCE = random.Random(5)
TEXT = b"".join(
    b"%d GET /files/%d 200 %d\n" % (n, n * 7919 % 10_007, CHANCE.randrange(10**6)) for n in range(60_000)
)
#: Two slices and a part: the first slice and the last block are text, and in between is what saves nothing.
MIXED = TEXT[: SLICE + BLOCK] + random_bytes(SLICE - BLOCK) + TEXT[: BLOCK // 2]


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=8) as running:
        yield running


def upload(
    cluster: UpkeepCluster,
    data: bytes,
    policy: Policy,
    how: Compression | None = None,
    hint: int | None = None,
) -> File:
    with cluster.uploader.begin(soon()) as session:
        session.add(
            BytesSource(data),
            name="a",
            content_type="text/plain",
            policy=policy,
            compression=how,
            size_hint=hint,
        )
        [file] = session.commit()
    return cluster.file(file)


def tables(cluster: UpkeepCluster, file: File) -> dict[FragmentId, FragmentTable]:
    return {id: cluster.store(node).stat(id, soon()) for id, node in cluster.fragments(file)}


def codecs(cluster: UpkeepCluster, file: File) -> list[int]:
    """Of each block of the file; all fragments say the same."""
    told: dict[UUID, set[tuple[int, ...]]] = {}
    for id, table in tables(cluster, file).items():
        told.setdefault(id.slice, set()).add(tuple(entry.codec for entry in table.entries))
    found: list[int] = []
    for piece in file.slices:
        [same] = told[piece.id]
        found.extend(same)
    return found


def stored(cluster: UpkeepCluster, file: File) -> dict[tuple[int, int], list[bytes]]:
    """Each cell of each fragment as it is on its disk, by the slice's number and the fragment's."""
    found = {}
    ordinal = {piece.id: piece.ordinal for piece in file.slices}
    for id, node in cluster.fragments(file):
        store = cluster.store(node)
        reader = store.get(id, 0, 1000, soon())
        cells = []
        for entry in reader.table.entries:
            cell = bytearray(entry.length)
            reader.read_cell(memoryview(cell))
            assert checksum(cell) == entry.checksum
            cells.append(bytes(cell))
        reader.close()
        found[ordinal[id.slice], id.index] = cells
    return found


@pytest.mark.parametrize("policy", [COPIES, CODED, WIDE])
@pytest.mark.parametrize("hint", [None, len(MIXED)])
def test_blocks_that_save_enough_are_kept_compressed(
    cluster: UpkeepCluster, policy: Policy, hint: int | None
) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd"), hint)
    assert codecs(cluster, file) == [ZSTD] * 5 + [RAW] * 3 + [ZSTD]
    assert cluster.download(file) == MIXED
    kept = sum(sum(map(len, cells)) for cells in stored(cluster, file).values())
    assert kept < 0.65 * len(MIXED) * policy.width / policy.k
    assert cluster.pool.usage().blocks == 0


def incompat(cluster: UpkeepCluster, file: File) -> set[int]:
    """What must be known to read the fragments, as they say at the beginning and in all."""
    paths = [cluster.path(id, node) for id, node in cluster.fragments(file)]
    said = {FragmentHeader.unpack(path.read_bytes())[0].extra.features.incompat for path in paths}
    assert said == {table.extra.features.incompat for table in tables(cluster, file).values()}
    return said


@pytest.mark.parametrize("policy", [COPIES, CODED])
def test_who_does_not_know_it_is_told_by_each_fragment(cluster: UpkeepCluster, policy: Policy) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd"))
    assert incompat(cluster, file) == {COMPRESSED}
    cluster.stop_node(cluster.node(cluster.fragments(file)[0][1]))
    assert drive(cluster.repair()).detail["made"] != 0
    assert incompat(cluster, file) == {COMPRESSED}
    for data, how in ((MIXED, Compression("off")), (TEXT[:BLOCK], Compression("zstd"))):
        assert incompat(cluster, upload(cluster, data, policy, how)) == {0}


@pytest.mark.parametrize("policy", [COPIES, CODED])
def test_what_goes_to_an_older_node_is_not_compressed(
    cluster: UpkeepCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = wire.FEATURES & ~(COMPRESSED << wire.INCOMPAT_AT)
    old = cluster.id(0)
    address = cluster.nodes[0].server.address
    features = NodeClient.features

    def told(client: NodeClient, deadline: Deadline) -> int:
        agreed = features(client, deadline)
        return agreed & known if client.address == address else agreed

    monkeypatch.setattr(NodeClient, "features", told)
    met = set()
    for _ in range(20):
        file = upload(cluster, TEXT, policy, Compression("zstd"))
        for piece in file.slices:
            some = [(id, node) for id, node in cluster.fragments(file) if id.slice == piece.id]
            found = {
                entry.codec for id, node in some for entry in cluster.store(node).stat(id, soon()).entries
            }
            assert found == ({RAW} if old in piece.nodes else {ZSTD})
            met |= found
    assert met == {RAW, ZSTD}


@pytest.mark.parametrize("policy", [COPIES, CODED])
def test_any_range_of_it_can_be_read(cluster: UpkeepCluster, policy: Policy) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd"))
    edges = sorted({0, 1, BLOCK - 1, BLOCK, SLICE, SLICE + BLOCK, SLICE + BLOCK + 1, 2 * SLICE, len(MIXED)})
    for start in edges[:-1]:
        for stop in (edge for edge in edges if edge > start):
            got = b"".join(map(bytes, cluster.downloader.read(file, start, stop, soon())))
            assert got == MIXED[start:stop], (start, stop)


@pytest.mark.parametrize("policy", [COPIES, CODED, WIDE])
def test_any_m_fragments_may_be_lost_or_damaged(cluster: UpkeepCluster, policy: Policy) -> None:
    file = upload(cluster, TEXT, policy, Compression("zstd"))
    hurt = cluster.fragments(file)[: policy.m]
    for id, node in hurt:
        flip(cluster.path(id, node), 5000)
    assert cluster.download(file) == TEXT
    for id, node in hurt:
        cluster.path(id, node).unlink()
    assert cluster.download(file) == TEXT


@pytest.mark.parametrize("policy", [COPIES, WIDE])
def test_what_repair_makes_anew_is_what_was_there(
    cluster: UpkeepCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd", 3))
    before = stored(cluster, file)
    monkeypatch.setattr(zstandard, "ZstdCompressor", None)  # nothing is compressed again
    for _, node in cluster.fragments(file)[: policy.m]:
        cluster.stop_node(cluster.node(node))
    assert drive(cluster.repair()).detail["made"] != 0
    cluster.assert_whole(file)
    assert stored(cluster, file) == before
    assert cluster.download(file) == MIXED


def without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    compression.library.cache_clear()


@pytest.fixture
def _library_again() -> Iterator[None]:
    yield
    compression.library.cache_clear()


@pytest.mark.usefixtures("_library_again")
@pytest.mark.parametrize("policy", [COPIES, CODED])
def test_without_zstd_it_is_repaired_and_who_reads_it_is_told_what_to_install(
    cluster: UpkeepCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd"))
    before = stored(cluster, file)
    with monkeypatch.context() as patch:
        without_zstd(patch)
        with pytest.raises(NoZstd, match="pip install 'distfs") as raised:
            cluster.download(file)
        assert raised.value.status == 503
        [told] = _compressed(cluster.meta)
        assert (told.level, told.remedy) == (Level.BAD, "pip install 'distfs[compression]'")
        assert cluster.db.damage_count(soon()) == 0
        cluster.stop_node(cluster.node(cluster.fragments(file)[0][1]))
        assert drive(cluster.repair()).detail["made"] != 0
        assert stored(cluster, file) == before
        raw = upload(cluster, TEXT[:SLICE], policy)
        assert set(codecs(cluster, raw)) == {RAW}
    compression.library.cache_clear()
    assert cluster.download(file) == MIXED
    assert list(_compressed(cluster.meta)) == []
    cluster.assert_whole(file)


@pytest.mark.parametrize("size", [1, 4096, BLOCK - 1, BLOCK])
def test_a_small_file_is_kept_as_it_is(cluster: UpkeepCluster, size: int) -> None:
    file = upload(cluster, TEXT[:size], COPIES, Compression("zstd"))
    assert is_one_block(file)
    assert codecs(cluster, file) == [RAW]
    assert cluster.download(file) == TEXT[:size]


@pytest.mark.parametrize("policy", [CODED, WIDE])
@pytest.mark.parametrize("lying", [0, 1])
def test_a_cell_of_another_code_word_is_damage_and_the_block_is_read(
    cluster: UpkeepCluster, policy: Policy, lying: int
) -> None:
    """One fragment has cells of the plain block, good ones by its table, where all others have them of the frame."""
    data = TEXT[: 2 * BLOCK]
    file = upload(cluster, data, policy, Compression("zstd"))
    [piece] = file.slices
    id, node = cluster.fragments(file)[lying]
    store, code = cluster.store(node), code_for(policy)
    with closing(store.get(id, 0, 0, soon())) as reader:
        entries = reader.table.entries
    header = cluster.maker()._identity(next(t for t in cluster.db.slices_on(node, None, 9, soon())), soon())
    writer = store.put(header.header(piece.id, 0, lying), 0, soon())
    for number, entry in enumerate(entries):
        block = memoryview(bytearray(data[number * BLOCK : (number + 1) * BLOCK]))
        cell = memoryview(code.encode(block)[lying])
        writer.write_cell(CellEntry(len(cell), RAW, checksum(cell), entry.plain), cell)
    writer.finish(len(data), True)
    writer.commit()
    assert cluster.download(file) == data
    eventually(lambda: cluster.db.damage_count(soon()) == 1, "it is noted as damage")


@pytest.mark.parametrize("policy", [COPIES, CODED])
def test_what_is_drained_is_copied_as_it_is(cluster: UpkeepCluster, policy: Policy) -> None:
    file = upload(cluster, MIXED, policy, Compression("zstd"))
    before = stored(cluster, file)
    node = cluster.fragments(file)[0][1]
    for id, at in cluster.fragments(file):
        if at == node:
            task = next(t for t in cluster.db.slices_on(node, None, 100, soon()) if t.fragment == id)
            target = next(n for n in map(cluster.id, cluster.nodes) if n not in task.piece.nodes)
            cluster.maker().copy(task, id.index, node, target, soon())
            assert cluster.db.move_fragment(id.slice, id.index, node, target, soon())
    assert stored(cluster, file) == before
    assert cluster.download(file) == MIXED


LARGE = 256 << 10


@pytest.fixture
def ways(tmp_path: Path, metadb_url: str) -> Iterator[Ways]:
    """Blocks so large that a file of one is no small one."""
    sizes = {"block_size": LARGE, "slice_size": 2 * LARGE, "window": 6 * LARGE, "memory_budget": 24 * LARGE}
    with byte_ways(metadb_url, tmp_path, **sizes) as running:
        yield running


@pytest.mark.parametrize("policy", [COPIES, CODED])
@pytest.mark.parametrize("size", [LARGE, LARGE - 5000, LARGE + 30_000])
def test_a_file_of_one_block_is_compressed_by_itself(ways: Ways, policy: Policy, size: int) -> None:
    file = ways.upload(TEXT[:size], policy, how=ZIPPED)
    assert sum(path.stat().st_size for path in ways.fragments()) < 0.6 * size * policy.width / policy.k
    assert ways.download(file) == TEXT[:size]
    assert ways.download(file, 7, size - 7) == TEXT[7 : size - 7]
    for path in list(ways.paths(file).values())[: policy.m]:
        flip(path, 5000)
    assert ways.download(file) == TEXT[:size]
    ways.assert_clean()


@pytest.mark.usefixtures("_library_again")
@pytest.mark.parametrize("policy", [Policy(1, 0), COPIES])
def test_without_zstd_a_file_of_one_block_is_no_error_of_ours(
    ways: Ways, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ways.upload(TEXT[:LARGE], policy, how=ZIPPED)
    with monkeypatch.context() as patch:
        without_zstd(patch)
        with pytest.raises(NoZstd, match="pip install 'distfs"):
            ways.download(file)
    compression.library.cache_clear()
    assert ways.download(file) == TEXT[:LARGE]
    ways.assert_clean()


@pytest.mark.parametrize("policy", [COPIES, CODED])
@pytest.mark.parametrize("size", [LARGE, LARGE - 1, 2 * LARGE + 30_000])
def test_each_block_leaves_as_a_frame_of_its_own(ways: Ways, policy: Policy, size: int) -> None:
    data = TEXT[: min(size, LARGE)] + random_bytes(max(0, size - LARGE))
    file = ways.upload(data, policy, how=ZIPPED)
    frames = [bytes(frame) for frame in ways.services.downloader.frames(file, 0, file.size, soon())]
    assert b"".join(map(zstandard.ZstdDecompressor().decompress, frames)) == data
    assert len(frames) == -(-size // LARGE)
    assert len(frames[0]) < LARGE / 2


def test_a_small_file_that_another_service_compressed_is_read(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.transfer.upload.SMALL_BODY", 0)
    file = ways.upload(TEXT[:50_000], how=ZIPPED)
    assert all(path.stat().st_size < 40_000 for path in ways.fragments())
    for hurt in (False, True):
        if hurt:
            flip(next(iter(ways.paths(file).values())), 5000)
        assert ways.services.downloader.whole(file, soon()) == TEXT[:50_000]
        assert ways.download(file) == TEXT[:50_000]


def test_a_node_lost_while_it_is_written_is_made_up_for(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the other, as it was compressed."""
    data, made = (TEXT + TEXT)[: 5 * LARGE], []

    def counted(file: FileIdentity, piece: Slice, index: int, *how: Any) -> None:
        rebuild(file, piece, index, *how)
        made.append(index)

    monkeypatch.setattr("distfs.transfer.upload.rebuild", counted)

    placement, chosen = ways.services.uploader.placement, list[Sequence[int]]()
    place = placement.place

    def noted(*asked: Any) -> Sequence[int]:
        chosen.append(place(*asked))
        return chosen[-1]

    monkeypatch.setattr(placement, "place", noted)

    def kill() -> None:
        ways.kill(chosen[-1][0])  # it has not all of the last slice

    file = ways.upload(Source(data, {4 * LARGE + LARGE // 2: kill}), how=ZIPPED)
    assert made
    assert all(min(piece.nodes) > 0 for piece in file.slices)
    assert ways.download(file) == data
