"""``distfs up`` with all of its data on one small disk that fills up: MetaDB lives, and deleting gives room."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from distfs.metadb.embedded_postgres import processes_in, resolve
from tests.cluster.harness import clean_environment
from tests.cluster.test_up import StartUp, Up, curl
from tests.contract.litter import eventually
from tests.postgres import run_sql
from tests.privileges import need_root

MIB = 1 << 20
DISK = 400 * MIB
FILES = 4000
CHANGED = 100 * MIB
SMALL = 100
SEGMENT = 16 * MIB  # PostgreSQL's log grows by as much


@pytest.fixture
def disk_of_few_files(data: Path) -> Iterator[Path]:
    """The data folder is all of a file system of ``DISK`` bytes and ``FILES`` inodes."""
    need_root("a file system of its own", "mount", "umount")
    data.mkdir()
    options = f"size={DISK},nr_inodes={FILES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(data)], check=True)
    try:
        yield data
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


@pytest.fixture
def disk(data: Path, tmp_path: Path) -> Iterator[Path]:
    """The data folder is all of a file system of ``DISK`` bytes."""
    need_root("a file system of its own", "mkfs.ext4", "mount", "umount")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK)
    data.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(data)], check=True)
    try:
        yield data
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


class Client:
    def __init__(self, up: Up) -> None:
        self._place = urlsplit(up.url)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._place.hostname or "", self._place.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def put(self, size: int) -> tuple[int, str]:
        return self.ask("PUT", "/upload/x", os.urandom(size))

    def delete(self, uuid: str) -> None:
        assert self.ask("DELETE", f"/files/{uuid}") == (204, "")

    def fill(self) -> list[str]:
        """Upload until nothing fits any more, and small files then; -> what is there, the large ones first."""
        kept = []
        for size in (8 * MIB, MIB):
            while (answer := self.put(size))[0] == 201:
                kept.append(answer[1].strip())
            assert answer[0] == 507, answer
        for _ in range(SMALL):
            answer = self.put(1000)
            assert answer[0] in (201, 507)
            kept += [answer[1].strip()] * (answer[0] == 201)
        return kept


def test_metadb_outlives_a_disk_full_of_files_and_thousands_of_small_changes(up: StartUp, disk: Path) -> None:
    running = up(new=True).wait_ready()
    metadb, client = running.children()["metadb"], Client(running)
    kept = client.fill()
    for uuid in kept[4:]:
        client.delete(uuid)
        status, text = client.put(1000)
        if status == 201:
            client.delete(text.strip())
    url = resolve(f"embedded:{disk / 'metadb'}")
    for _ in range(
        CHANGED // MIB
    ):  # as much log as two thousand uploads and deletes of small files write, and more
        run_sql(url, f"SELECT pg_logical_emit_message(false, 'test', repeat('x', {MIB}))")
    for uuid in kept[:4]:
        assert client.ask("HEAD", f"/download/{uuid}")[0] == 200
    client.delete(kept[0])
    eventually(lambda: client.put(8 * MIB)[0] == 201, "what was deleted gives way")
    assert running.children()["metadb"] == metadb
    assert "PostgreSQL died" not in running.log


def wait_prepared(running: Up) -> None:
    """Until MetaDB has done what it does beforehand for a full disk."""
    running.says("log is laid ahead")
    running.says("a ballast file of")


def take_all(disk: Path, foreign: Path) -> None:
    """Something else writes until the disk has not a byte left."""
    with foreign.open("ab") as file:
        while room := free(disk):
            with contextlib.suppress(OSError):  # MetaDB took some of it at the same moment
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room)


@contextlib.contextmanager
def crashed(running: Up, data: Path) -> Iterator[None]:
    """PostgreSQL was killed, with all of its processes, and is started again only after the block."""
    running.signal(signal.SIGSTOP)
    try:
        for pid in list(processes_in(data)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not list(processes_in(data)), "PostgreSQL has ended")
        yield
    finally:
        running.signal(signal.SIGCONT)


def test_the_ballast_is_given_up_for_metadb_and_made_again(up: StartUp, disk: Path) -> None:
    """Something else fills the disk, so that not even PostgreSQL finds room."""
    running = up(new=True).wait_ready()
    client, ballast, foreign = Client(running), disk / "metadb" / "ballast", disk / "foreign"
    uuid = curl("-T", __file__, f"{running.url}/upload/x").decode().strip()
    wait_prepared(running)
    assert ballast.stat().st_blocks * 512 >= 2 * SEGMENT
    with foreign.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(disk) - MIB)
    running.says("MetaDB IS ABOUT TO STOP FOR WANT OF ROOM")
    eventually(lambda: ballast.stat().st_blocks * 512 < SEGMENT, "most of the ballast is gone")
    assert client.put(1000)[0] == 507
    assert client.ask("GET", f"/download/{uuid}")[0] == 200
    client.delete(uuid)
    foreign.unlink()
    eventually(lambda: ballast.stat().st_blocks * 512 >= 2 * SEGMENT, "there is a whole ballast again")
    eventually(lambda: client.put(1000)[0] == 201, "uploads are taken again")


def test_a_metadb_that_finds_no_room_to_start_in_starts_in_that_of_the_ballast(
    up: StartUp, disk: Path
) -> None:
    running = up(new=True).wait_ready()
    uuid = curl("-T", __file__, f"{running.url}/upload/x").decode().strip()
    running.stop()
    foreign = disk / "foreign"
    take_all(disk, foreign)
    assert free(disk) == 0
    again = up().wait_ready()
    again.says("were given up")
    assert curl(f"{again.url}/download/{uuid}") == Path(__file__).read_bytes()
    Client(again).delete(uuid)


def test_metadb_lives_on_a_disk_without_a_byte_and_outlives_a_crash_there(up: StartUp, disk: Path) -> None:
    """Something else takes whatever the ballast gives up."""
    running = up(new=True).wait_ready()
    client, foreign, data = Client(running), disk / "foreign", disk / "metadb" / "postgres"
    ballast = disk / "metadb" / "ballast"
    kept, deleted = (curl("-T", __file__, f"{running.url}/upload/x").decode().strip() for _ in range(2))
    wait_prepared(running)
    take_all(disk, foreign)
    running.says("MetaDB IS ABOUT TO STOP FOR WANT OF ROOM")
    eventually(lambda: ballast.stat().st_blocks * 512 < SEGMENT, "most of the ballast is gone")
    take_all(disk, foreign)
    url = resolve(f"embedded:{disk / 'metadb'}")
    for _ in range(CHANGED * 2 // SEGMENT):
        run_sql(url, f"SELECT pg_logical_emit_message(false, 'test', repeat('x', {SEGMENT // 2}))")
        run_sql(url, "CHECKPOINT")
    assert free(disk) < MIB
    assert "PostgreSQL died" not in running.log
    assert client.ask("GET", f"/download/{kept}")[0] == 200
    with crashed(running, data):
        take_all(disk, foreign)
    running.says("ABOUT TO STOP FOR WANT OF ROOM: it starts, and only ")
    assert not ballast.exists()
    eventually(lambda: client.ask("GET", f"/download/{kept}")[0] == 200, "MetaDB is back")
    client.delete(deleted)


def test_without_any_room_left_the_log_says_so_and_metadb_comes_back_by_itself(
    up: StartUp, disk: Path
) -> None:
    running = up(new=True).wait_ready()
    client, foreign, data = Client(running), disk / "foreign", disk / "metadb" / "postgres"
    uuid = curl("-T", __file__, f"{running.url}/upload/x").decode().strip()
    wait_prepared(running)
    with crashed(running, data):  # what a start gives back is taken before, so that none finds room in it
        for leftover in (
            *data.glob("pg_dynshmem/*"),
            *data.rglob("pg_internal.init*"),
            data / "postmaster.pid",
        ):
            leftover.unlink()
        (disk / "metadb" / "ballast").unlink()
        take_all(disk, foreign)
    running.says("PostgreSQL did not start in ")
    running.says(" (its disk is full (0 bytes free in ")
    status, text = client.ask("GET", f"/files/{uuid}")
    assert status == 503
    assert "try again soon" in text
    assert str(disk) not in text
    running.says("MetaDB does not run: its disk is full (0 bytes free in ")
    running.says("free 32.0 MiB on that disk")
    assert "start it with" not in running.log
    os.truncate(foreign, foreign.stat().st_size - 32 * MIB)
    eventually(lambda: client.ask("GET", f"/files/{uuid}")[0] == 200, "MetaDB is back")
    client.delete(uuid)


def test_the_trash_is_emptied_by_hand_where_it_does_not_give_way(up: StartUp, disk: Path) -> None:
    running = up(new=True, DISTFS_UPKEEP_TRASH_GIVES_WAY="false").wait_ready()
    client = Client(running)
    kept = client.fill()
    for uuid in kept[:3]:
        client.delete(uuid)
    eventually(lambda: "`distfs trash empty` frees them" in client.put(8 * MIB)[1], "the remedy is named")
    empty = [sys.executable, "-m", "distfs", "trash", "empty", "--metadb", f"embedded:{disk / 'metadb'}"]
    done = subprocess.run(empty, env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3 files, 48.0 MiB on the storage nodes: erased\n"), (
        done.stderr
    )
    eventually(lambda: client.put(8 * MIB)[0] == 201, "there is room again")


def test_a_cluster_out_of_inodes_says_so_and_not_that_it_is_out_of_bytes(
    up: StartUp, disk_of_few_files: Path
) -> None:
    disk = disk_of_few_files
    running = up(new=True).wait_ready()
    client = Client(running)
    uuid = curl("-T", __file__, f"{running.url}/upload/x").decode().strip()
    foreign = disk / "foreign"
    foreign.mkdir()
    spare = FILES // 20  # less than nodes leave to MetaDB
    for number in range(os.statvfs(disk).f_ffree - spare):
        (foreign / str(number)).touch()
    eventually(lambda: "no inodes are left there" in client.put(1000)[1], "the upload hears what is missing")
    status, text = client.put(1000)
    assert status == 507
    assert re.search(r"0 bytes free above their reserve.*; 1 disk with \d{3}\.\d MiB free beside", text), text
    running.says("the disk has no inodes left for new files")
    client.delete(uuid)
    shutil.rmtree(foreign)
    eventually(lambda: client.put(1000)[0] == 201, "uploads are taken again")
