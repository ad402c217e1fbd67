"""Disks that are full, fail or turn read-only, under real nodes: fragments go elsewhere, what is there stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.config.settings import Bytes, Config, Fraction, Seconds
from distfs.errors import Full
from distfs.model import Node, NodeReport
from distfs.services import build
from distfs.storage.disk import writer as disk_writer
from distfs.storage.disk.watch import DiskWatch
from tests.contract.litter import eventually
from tests.contract.nodes import KillableServer, new_store, serving
from tests.contract.samples import header, listed, put, random_bytes, soon, whole
from tests.integration.byte_ways import BLOCK, SLICE, Ways, config_of, register
from tests.privileges import need_root

DATA = random_bytes(3 * SLICE + 1234)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    need_root("a file system of one's own", "mount")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def cluster(url: str, folder: Path, special: Path, reserve: int = 0) -> Iterator[tuple[Ways, int]]:
    """Three nodes; the data of the one with the number that is returned is in ``special``."""
    config: Config = config_of(url)
    services = build(config)
    id = services.meta.cluster_id(soon())
    with ExitStack() as stack:
        stack.callback(services.close)
        nodes: dict[int, KillableServer] = {}
        number = 0
        for place in (special / "node", folder / "n1", folder / "n2"):
            server = stack.enter_context(serving(place, config.node, id))
            found = register(services, server)
            nodes[found], number = server, number or found
        yield Ways(services, nodes), number


def report(ways: Ways, number: int) -> Node:
    """What the node says of itself, as its heartbeat would, and what services read of it then.

    But for its room: as if it had more than any disk that this runs on, or it would hardly be chosen.
    """
    node = ways.nodes[number]
    info = node.store.info(soon())
    told = NodeReport(info.node, node.address, "", 1 << 50, 0, 1 << 50, info.state)
    ways.services.meta.heartbeat(told, soon())
    return next(n for n in ways.services.directory.nodes(soon(), fresh=True) if n.id == number)


def test_a_disk_that_fills_up_in_mid_write_sends_its_fragments_elsewhere(
    metadb_url: str, tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster(metadb_url, tmp_path, disk) as (ways, small):
        ways.upload(DATA)  # every folder is made, every node known
        report(ways, small)
        filler = disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space"):  # noqa: PT012
            file.write(bytes(1 << 20))
            file.flush()
        for _ in range(5):
            file_ = ways.upload(DATA)
            assert all(all(piece.nodes) and small not in piece.nodes for piece in file_.slices)
            assert ways.download(file_) == DATA
            report(ways, small)
    assert f"on node {small}: " in caplog.text, "it was tried"


def test_a_disk_that_fails_in_mid_write_sends_its_fragments_elsewhere_and_says_so(
    metadb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = disk_writer._write_all
    broken = tmp_path / "broken"
    broken.mkdir()

    def fails(fd: int, view: memoryview) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write_all(fd, view)

    with cluster(metadb_url, tmp_path, broken) as (ways, bad):
        kept = ways.upload(DATA)
        monkeypatch.setattr(disk_writer, "_write_all", fails)
        store = ways.nodes[bad].store
        for _ in range(30):
            file = ways.upload(DATA)
            assert all(all(piece.nodes) and bad not in piece.nodes for piece in file.slices)
            assert ways.download(file) == ways.download(kept) == DATA
            if store.info(soon()).state == "readonly":
                break
            for _ in range(5):  # the breaker must not hide from the node what it is to find out
                client = ways.services.directory.store(bad, soon())
                client.info(soon())
        assert store.health.trouble == "writes fail: Input/output error"
        assert not report(ways, bad).writable


def test_a_disk_turned_read_only_is_said_to_be_and_is_used_again_when_it_is_not(
    metadb_url: str, tmp_path: Path, disk: Path
) -> None:
    with cluster(metadb_url, tmp_path, disk) as (ways, small):
        report(ways, small)
        files = [ways.upload(DATA[: 2 * BLOCK]) for _ in range(6)]
        assert any(small in file.slices[0].nodes for file in files)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            assert report(ways, small).state == "readonly"
            for _ in range(6):
                assert small not in ways.upload(DATA[: 2 * BLOCK]).slices[0].nodes
            for file in files:
                assert ways.download(file) == DATA[: 2 * BLOCK]
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert report(ways, small).writable
        eventually(
            lambda: small in ways.upload(DATA[: 2 * BLOCK]).slices[0].nodes, "it takes fragments again"
        )


def test_a_node_at_its_reserve_refuses_put_and_serves_all_else(tmp_path: Path, disk: Path) -> None:
    config = config_of("postgresql://nobody@nowhere/x").node
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    # Both thresholds: the smaller of a share and of bytes counts.
    for share, bytes_ in ((0.5, 1 << 40), (0.99, free // 2)):
        node = replace(config, reserve=Fraction(share), reserve_bytes=Bytes(bytes_))
        with serving(disk / f"node{share}", node) as server:
            store = server.store
            kept = put(store, header(), random_bytes(20_000))
            while True:
                try:
                    put(store, header(), random_bytes(20_000), hint=20_000)
                except Full as e:
                    assert "reserve" in str(e)  # noqa: PT017
                    break
            left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            assert left >= free // 2 - 60_000, "the reserve is still there"
            assert whole(store, kept) == random_bytes(20_000)
            for fragment in listed(store):
                assert store.delete(fragment, soon())
            put(store, header(), random_bytes(20_000), hint=20_000)
            for fragment in listed(store):
                store.delete(fragment, soon())


def test_a_limit_on_file_sizes_is_an_error_of_the_write_and_leaves_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: write(2) fails with EFBIG in the middle, whatever was promised before."""
    config = config_of("postgresql://nobody@nowhere/x").node
    store = new_store(tmp_path / "n", header().cluster, config)
    kept = put(store, header(), random_bytes(1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(Exception, match="too large"):
            put(store, header(), random_bytes(500_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert listed(store) == [kept]
    assert not list((tmp_path / "n" / "tmp").iterdir())
    store.close()


def test_a_watch_on_a_real_disk_finds_nothing_wrong(tmp_path: Path) -> None:
    config = config_of("postgresql://nobody@nowhere/x").node
    store = new_store(tmp_path / "n", header().cluster, config)
    watch = DiskWatch(store, Seconds(0.01))
    eventually(lambda: store.health._good >= 3, "it was tried three times")
    watch.stop()
    assert store.health.trouble == ""
    eventually(lambda: not list((tmp_path / "n" / "tmp").iterdir()), "no probe is left")
    store.close()
