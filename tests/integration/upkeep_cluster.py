"""A cluster for tests of upkeep: real MetaDB, real storage nodes in threads, and workers that step when told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

from distfs.config.settings import Bytes, BytesPerSecond, Config, Seconds, UpkeepConfig
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.model import File, FragmentId, Node, Policy
from distfs.peers.directory import NodeDirectory
from distfs.storage.disk.space import Space
from distfs.storage.disk.store import DiskStore
from distfs.storage.membership import Membership
from distfs.storage_server import StorageServer
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader
from distfs.transfer.placement import Placement
from distfs.transfer.upload import Uploader
from distfs.upkeep.damage import DamageNotes
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.maker import FragmentMaker
from distfs.upkeep.orphans import Orphans
from distfs.upkeep.rebalance import Rebalance
from distfs.upkeep.repair import Repair
from distfs.upkeep.scrub import Scrub
from distfs.upkeep.step import Pace, Step, Worker
from distfs.upkeep.trash import Trash
from tests.contract.litter import eventually
from tests.contract.nodes import new_store
from tests.integration.meta_examples import silence_node, soon
from tests.service import SLICE, small_config

HOUR = 3600.0
DAY = 24 * HOUR
COPIES = Policy(1, 1)

#: Unlimited rates, no waiting, the default ages.
FAST = UpkeepConfig(
    interval=Seconds(0.05),
    repair_rate=BytesPerSecond(0),
    scrub_rate=BytesPerSecond(0),
    rebalance_rate=BytesPerSecond(0),
)


class SmallDiskStore(DiskStore):
    """A DiskStore on a disk of its own: ``capacity`` bytes, of which its fragments use some."""

    def __init__(self, folder: Path, cluster: UUID, config: Config, capacity: int) -> None:
        self.capacity = capacity
        super().__init__(folder, cluster, config.node)

    def _space(self) -> Space:
        used = 0
        for path in self.folder.rglob("*.*"):
            with suppress(FileNotFoundError):  # renamed or deleted meanwhile, by another thread
                used += path.stat().st_size if path.is_file() else 0
        return Space(self.capacity, used, self.capacity - used, reserve=0, files=None, metadb=False)

    def disk(self) -> str:
        return str(self.node)


class BytesSource:
    """A Source over bytes."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def readinto(self, view: memoryview) -> int:
        n = min(len(view), len(self._left))
        view[:n] = self._left[:n]
        self._left = self._left[n:]
        return n


class RunningNode:
    """One storage node in threads of this process."""

    def __init__(
        self, folder: Path, config: Config, meta: MetaDB, capacity: int | None, port: int = 0
    ) -> None:
        cluster = meta.cluster_id(soon())
        if capacity is None:
            self.store = new_store(folder, cluster, config.node)
        else:
            new_store(folder, cluster, config.node).close()
            self.store = SmallDiskStore(folder, cluster, config, capacity)
        self._config, self._stall_timeout = config.node, config.peers.stall_timeout
        self.open_port(port)
        self._membership = Membership(self.store, meta, self.server.address, config.node, lambda _: None)

    def stop(self) -> None:
        self._membership.stop()
        self.close_port()
        self.store.close()

    def open_port(self, port: int) -> None:
        """0: any free one."""
        self.server = StorageServer("127.0.0.1", port, self.store, self._config, self._stall_timeout)
        poll = {"poll_interval": 0.02}
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs=poll)
        self._thread.start()

    def close_port(self) -> None:
        """Nobody can reach it any more; it goes on to heartbeat."""
        if self._thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self._thread.join()


class UpkeepCluster:
    """Use it as a context manager. Nodes are counted from 0; ``id(i)`` is MetaDB's number of node i."""

    def __init__(
        self,
        folder: Path,
        url: str,
        nodes: int = 3,
        upkeep: UpkeepConfig = FAST,
        capacity: int | None = None,
        zones: Sequence[str] = (),
    ) -> None:
        base = small_config(url)
        node = replace(base.node, heartbeat=Seconds(0.2), reserve_bytes=Bytes(0))
        self.url, self.folder, self.capacity = url, folder, capacity
        self.config = replace(base, upkeep=upkeep, node=node)
        self.nodes: dict[int, RunningNode] = {}
        self._count, self._zones = nodes, zones
        self._stack = ExitStack()

    def __enter__(self) -> UpkeepCluster:
        config = self.config
        self.meta = MetaDB(config.metadb, config.node.down_after)
        self._stack.callback(self.meta.close)
        self.db = UpkeepDB(self.meta)
        self.directory = NodeDirectory(self.meta, config.peers)
        self._stack.callback(self.directory.close)
        self.pool = BlockPool(config.storage.block_size, 64)
        self.uploader = Uploader(
            self.meta, self.directory, Placement(Random(1)), self.pool, config.storage, 4
        )
        self._stack.callback(self.uploader.close)
        self.damage = DamageNotes(self.db)
        self._stack.callback(self.damage.close)
        self.downloader = Downloader(self.directory, self.pool, self.damage, self.meta.file)
        self.executor = ThreadPoolExecutor(12)
        self._stack.callback(self.executor.shutdown)
        self._stack.callback(self._stop_nodes)
        self.start_nodes(range(self._count))
        return self

    def _stop_nodes(self) -> None:
        for node in self.nodes.values():
            node.stop()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # --- nodes ----------------------------------------------------------------------------------------

    def start_nodes(self, numbers: Iterable[int], capacity: int | None = None) -> None:
        """Start nodes, new or again, and wait until they take part."""
        for i in numbers:
            zone = self._zones[i] if i < len(self._zones) else ""
            config = replace(self.config, node=replace(self.config.node, zone=zone))
            folder = self.folder / f"node{i}"
            self.nodes[i] = RunningNode(folder, config, self.meta, capacity or self.capacity)
        started = {node.store.node for node in self.nodes.values()}
        eventually(lambda: started <= {n.uuid for n in self._nodes() if n.alive}, "the nodes are up")

    def cut_off(self, number: int) -> None:
        """Nobody can reach the node with that id any more, and yet it heartbeats."""
        self.nodes[self.node(number)].close_port()
        self.directory.close()  # with the connections there were

    def let_in(self, number: int) -> None:
        """It can be reached again, where it was."""
        node = self.nodes[self.node(number)]
        node.open_port(node.server.address.port)

    def start_node(self, i: int, capacity: int | None = None) -> None:
        self.start_nodes([i], capacity)

    def stop_node(self, i: int, silent_for: float = 2 * HOUR) -> int:
        """Stop a node, and let it be silent for so long already; -> its id."""
        number = self.id(i)
        self.nodes.pop(i).stop()
        silence_node(self.url, number, silent_for)
        eventually(lambda: not self.alive(number), f"node {i} is down")
        return number

    def alive(self, number: int) -> bool:
        return any(n.id == number and n.alive for n in self._nodes())

    def id(self, i: int) -> int:
        uuid = self.nodes[i].store.node
        return next(n.id for n in self._nodes() if n.uuid == uuid)

    def _nodes(self) -> list[Node]:
        """As they are this moment; the workers then see the same."""
        return self.directory.nodes(soon(), fresh=True)

    def node(self, number: int) -> int:
        """The other way round."""
        return next(i for i in self.nodes if self.id(i) == number)

    def store(self, number: int) -> DiskStore:
        """The disk of the node with that id."""
        return self.nodes[self.node(number)].store

    # --- files ----------------------------------------------------------------------------------------

    def upload(self, data: bytes, policy: Policy = COPIES) -> File:
        with self.uploader.begin(soon()) as session:
            session.add(BytesSource(data), name="a.bin", content_type="text/plain", policy=policy)
            [file] = session.commit()
        return file

    def download(self, file: File) -> bytes:
        fresh = self.file(file)
        return b"".join(map(bytes, self.downloader.read(fresh, 0, fresh.size, soon())))

    def file(self, file: File) -> File:
        """As MetaDB has it now."""
        return self.meta.file(file.id, soon())

    def fragments(self, *files: File) -> list[tuple[FragmentId, int]]:
        """What MetaDB says: fragment and node."""
        return [
            (FragmentId(piece.id, index), node)
            for file in files
            for piece in self.file(file).slices
            for index, node in enumerate(piece.nodes)
        ]

    def path(self, id: FragmentId, number: int) -> Path:
        return self.store(number).path(id)

    def age(self, id: FragmentId, number: int, seconds: float) -> None:
        """Let a fragment on a node's disk have been written so long ago."""
        _age(self.path(id, number), seconds)

    def age_all(self, seconds: float) -> None:
        for number in map(self.id, self.nodes):
            for id in self.on_disk(number):
                self.age(id, number, seconds)

    def age_quarantine(self, id: FragmentId, number: int, seconds: float) -> None:
        _age(self.quarantined(number)[id], seconds)

    def on_disk(self, number: int) -> set[FragmentId]:
        return {f.id for f in self.store(number).list("", 10_000, soon()).fragments}

    def quarantined(self, number: int) -> dict[FragmentId, Path]:
        store = self.store(number)
        page = store.list_quarantine("", 10_000, soon())
        return {f.id: store._aside.path(f.id) for f in page.fragments}

    def assert_whole(self, *files: File) -> None:
        """Every fragment is where MetaDB says, on nodes of its own, good, and nothing is noted against it."""
        for file in files:
            for piece in self.file(file).slices:
                assert len(set(piece.nodes)) == len(piece.nodes)
                for index, node in enumerate(piece.nodes):
                    id = FragmentId(piece.id, index)
                    assert self.store(node).verify(id, soon()) == ()
                    assert self.store(node).stat(id, soon()).digest(file.block_size) == piece.digest
        assert self.db.damage_count(soon()) == 0

    # --- workers --------------------------------------------------------------------------------------

    def maker(self) -> FragmentMaker:
        return FragmentMaker(self.meta, self.db, self.directory, self.config.peers, self.pool, self.damage)

    def repair(self, parallel: int = 4) -> Repair:
        return Repair(self.maker(), self.config.upkeep, self.executor, parallel)

    def scrub(self) -> Scrub:
        return Scrub(self.db, self.directory, self.config.upkeep, self.config.peers, self.executor)

    def orphans(self) -> Orphans:
        return Orphans(self.maker(), self.config.upkeep)

    def trash(self) -> Trash:
        return Trash(self.db, self.directory, self.config.upkeep)

    def rebalance(self, parallel: int = 4) -> Rebalance:
        return Rebalance(self.maker(), self.config.upkeep, 0.01, self.executor, parallel)

    def sql(self, text: str, **params: object) -> list[list[object]]:
        from tests.postgres import run_sql

        return run_sql(self.url, text, **params)


def drive(worker: Worker, limit: int = 2000) -> Step:
    """Step until it is idle; -> the last step."""
    for _ in range(limit):
        step = worker.step(Deadline(60))
        if step.pace is Pace.IDLE:
            return step
        time.sleep(min(step.pause, 0.2))
    raise AssertionError(f"still not idle after {limit} steps")


def steps(worker: Worker) -> Iterator[Step]:
    """One step at a time."""
    while True:
        yield worker.step(Deadline(60))


def bytes_of(slices: int, seed: int = 1) -> bytes:
    """A file of so many slices, the last one shorter."""
    return Random(seed).randbytes(slices * SLICE - 12_345)


def flip(path: Path, offset: int) -> None:
    """Damage one bit of a file on disk; from the end when negative."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    kept = path.stat()
    path.write_bytes(data)
    os.utime(path, (kept.st_atime, kept.st_mtime))


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))
