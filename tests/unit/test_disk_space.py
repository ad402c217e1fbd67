"""How much room fragments get: the reserve, MetaDB on the same disk, inodes; and a ballast for MetaDB."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.config.settings import Fraction, NodeConfig
from distfs.errors import Full, Unavailable
from distfs.metadb import ballast
from distfs.metadb.ballast import SEGMENT, Ballast, log_limit, reserve, shares_disk
from distfs.metadb.embedded_postgres import resolve
from distfs.storage.disk.space import Space, space
from tests.contract.nodes import NODE, new_store
from tests.contract.samples import CLUSTER, header, put, soon
from tests.privileges import need_root

MIB, GIB = 1 << 20, 1 << 30


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    need_root("a file system of its own", "mount", "umount")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("capacity", "log", "left"),
    [
        (300 * MIB, 48 * MIB, 78 * MIB),  # at least three segments
        (2 * GIB, 102 * MIB, 307 * MIB),
        (10 * GIB, 256 * MIB, 1280 * MIB),
        (26 * GIB, 256 * MIB, 1280 * MIB),
        (20000 * GIB, 256 * MIB, 1280 * MIB),
    ],
)
def test_nodes_leave_metadb_on_their_disk_room_by_its_size(capacity: int, log: int, left: int) -> None:
    assert log_limit(capacity) // MIB * MIB == log
    assert reserve(capacity) // MIB * MIB == left


def test_a_node_on_metadbs_disk_keeps_more_in_reserve_than_one_elsewhere(tmp_path: Path) -> None:
    node = NodeConfig()
    (tmp_path / "metadb").mkdir()
    with _mounted(tmp_path / "disk", f"size={300 * MIB}") as disk:
        alone, beside, elsewhere = (
            space(disk, node, shares_disk(metadb, disk)) for metadb in (None, disk, tmp_path / "metadb")
        )
        assert alone.reserve == elsewhere.reserve == 3 * MIB
        assert beside.reserve == reserve(300 * MIB)
        assert beside.free == alone.free - (beside.reserve - alone.reserve)
        assert "room for MetaDB on the same disk" in beside.refusal(GIB)
        assert "MetaDB" not in alone.refusal(GIB)


@pytest.mark.parametrize(
    ("given", "wanted", "words"),
    [
        (
            Space(100 * MIB, 98 * MIB, 2 * MIB, MIB, None, False),
            1536 * 1024,
            "no room for 1.5 MiB: the disk has 2.0 MiB free, and 1.0 MiB are kept in reserve (node.reserve)",
        ),
        (
            Space(100 * MIB, 99 * MIB, MIB + 5, MIB, None, False),
            6,
            "no room for 6 bytes: the disk has 1,048,581 bytes free, and 1,048,576 bytes are kept",
        ),
        (
            Space(100 * MIB, 99 * MIB, MIB + 1, MIB, None, False),
            2,
            "and 1,048,576 bytes are kept in reserve (node.reserve)",
        ),
        (
            Space(100 * MIB, 99 * MIB, 512, MIB, None, True),
            1,
            "no room for 1 byte: the disk has 512 bytes free, and",
        ),
        (Space(100 * MIB, 50 * MIB, 50 * MIB, MIB, 0, False), 1, "no inodes left for new files"),
    ],
)
def test_a_refusal_says_what_is_free_and_what_is_kept(given: Space, wanted: int, words: str) -> None:
    assert words in given.refusal(wanted)


def test_a_disk_without_inodes_takes_no_fragment_says_so_and_deletes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _mounted(tmp_path / "disk", "size=64m,nr_inodes=200") as disk:
        store = new_store(disk, CLUSTER, replace(NODE, reserve=Fraction(0.1)))
        kept = []

        def put_some() -> None:
            while True:
                kept.append(put(store, header(), b"x"))

        with pytest.raises(Full, match=r"no inodes left .*, though 6\d\.\d MiB are free: delete files"):
            put_some()
        assert kept
        assert "no inodes left" in store.trouble
        assert (store.info(soon()).free, store.info(soon()).state) == (0, "active")
        for id in kept:
            assert store.delete(id, soon())
        for folder in (disk / "data").glob("*/*"):
            folder.rmdir()
        assert not store.trouble
        put(store, header(), b"x")
        store.close()


def test_inodes_that_others_used_up_are_named_and_not_the_bytes(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", "size=64m,nr_inodes=200") as disk:
        store = new_store(disk, CLUSTER, NODE)
        writer = store.put(header(), 0, soon())
        writer.finish(0, True)
        with contextlib.suppress(OSError):
            for i in range(1000):
                (disk / f"foreign{i}").touch()
        assert os.statvfs(disk).f_ffree == 0
        with pytest.raises(Full, match=r"no inodes left for new files, though [\d,]+ bytes are free"):
            writer.commit()
        store.close()


# --- MetaDB's ballast ---------------------------------------------------------------------------------


def fill(folder: Path, leave: int) -> Path:
    disk = os.statvfs(folder)
    file = folder / "foreign"
    with file.open("ab") as f:
        os.posix_fallocate(f.fileno(), f.tell(), disk.f_bavail * disk.f_frsize - leave)
    return file


def test_a_ballast_is_kept_while_there_is_room_given_up_without_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _mounted(tmp_path / "disk", f"size={300 * MIB}") as disk:
        kept, file = Ballast(disk), disk / "ballast"
        kept.look()
        assert file.stat().st_blocks * 512 == 48 * MIB
        foreign = fill(disk, leave=SEGMENT)
        kept.look()
        assert file.exists()
        fill(disk, leave=SEGMENT - 4096)
        with caplog.at_level(logging.ERROR):
            kept.look()
        assert file.stat().st_blocks * 512 == 4 * MIB  # for a start
        [told] = caplog.messages
        assert (
            "MetaDB IS ABOUT TO STOP FOR WANT OF ROOM: only 16,773,120 bytes" in told
            or "only 16.0 MiB" in told
        )
        assert "44.0 MiB of its ballast file were given up" in told
        fill(disk, leave=0)
        kept.look()
        assert file.stat().st_blocks * 512 == 4 * MIB
        assert len(caplog.messages) == 1
        assert kept.give_up("PostgreSQL does not start")
        assert not file.exists()
        assert not kept.give_up("PostgreSQL does not start")
        assert len(caplog.messages) == 2
        os.truncate(foreign, foreign.stat().st_size - 36 * MIB)
        kept.look()  # room for what a start needs, and not for the whole
        assert file.stat().st_blocks * 512 == 4 * MIB
        foreign.unlink()
        kept.look()
        assert file.stat().st_blocks * 512 == 48 * MIB


def test_a_disk_without_room_for_it_has_no_ballast_and_no_part_of_one(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", f"size={30 * MIB}") as disk:
        Ballast(disk).look()
        assert not (disk / "ballast").exists()
    Ballast(tmp_path / "nowhere").look()


@pytest.mark.parametrize(
    ("reason", "is_it"),
    [
        ('PANIC:  could not write to file "pg_wal/xlogtemp.1": No space left on device', True),
        ("FATAL:  could not write lock file: Disk quota exceeded", True),
        ("FATAL:  data directory has wrong ownership", False),
    ],
)
def test_what_postgres_says_of_a_full_disk(reason: str, is_it: bool, tmp_path: Path) -> None:
    assert ballast.is_for_want_of_room(reason, tmp_path) is is_it


def test_postgres_that_finds_no_room_to_say_so_has_none(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", f"size={60 * MIB}") as disk:
        assert not ballast.is_for_want_of_room("it said nothing", disk)
        fill(disk, leave=0)
        assert ballast.is_for_want_of_room("it said nothing", disk)
    with _mounted(tmp_path / "inodes", f"size={60 * MIB},nr_inodes=3") as disk:
        assert not ballast.trouble(disk)
        for i in range(2):
            (disk / str(i)).touch()
        assert "its disk has no inodes left (60.0 MiB free in" in ballast.trouble(disk)


def test_a_metadb_that_does_not_run_is_said_to_be_stopped_or_out_of_room(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(
        Unavailable, match=r"start it with `distfs up.*`; where that runs, .*postgres.log says why"
    ):
        resolve(f"embedded:{tmp_path}")
    with _mounted(tmp_path / "disk", f"size={60 * MIB}") as disk:
        fill(disk, leave=MIB)
        with pytest.raises(
            Unavailable, match=r"its disk is full \(1\.0 MiB free in .*\): free 32\.0 MiB on that disk"
        ):
            resolve(f"embedded:{disk}")
