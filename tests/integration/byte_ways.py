"""Uploads and downloads without HTTP: services over a real MetaDB and real storage nodes, blocks of 4 KiB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distfs.config.settings import Bytes, Config, HttpConfig, MetaDBConfig, Seconds, StorageConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.formats.fragment import FragmentHeader
from distfs.model import Compression, File, FragmentId, NodeReport, Policy
from distfs.services import Services, build
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import NODE, PEERS, KillableServer, serving
from tests.contract.samples import soon
from tests.faults.ledger import of_the_test

BLOCK, SLICE = 4096, 4 * 4096
COPIES, CODED = Policy(1, 1), Policy(2, 1)


def sized(**sizes: int) -> dict[str, Any]:
    return {key: Bytes(size) for key, size in sizes.items()}


def config_of(url: str, stall: float = 5, **storage: int) -> Config:
    sizes = {"block_size": BLOCK, "slice_size": SLICE, "window": 6 * BLOCK, "memory_budget": 12 * BLOCK}
    return Config(
        http=HttpConfig(threads=8),
        storage=StorageConfig(
            policies={"default": COPIES, "three": Policy(1, 2), "coded": CODED},
            **sized(**sizes | storage),
        ),
        metadb=MetaDBConfig(url=url),
        # Nodes here say once that they live. They take a connection, or refuse it, as soon as the machine lets them.
        node=replace(NODE, down_after=Seconds(3600)),
        peers=replace(PEERS, stall_timeout=Seconds(stall), connect_timeout=Seconds(30)),
    )


class Source:
    """A file's bytes. ``at``: what happens before the byte of that offset is read; it has to, and may raise."""

    def __init__(self, data: bytes, at: dict[int, Callable[[], object]] | None = None) -> None:
        self._data, self._at, self.given = data, dict(at or {}), 0
        self._met = {offset: of_the_test(f"what comes at byte {offset}") for offset in self._at}

    def readinto(self, view: memoryview) -> int:
        end = min(self.given + len(view), len(self._data))
        for offset in sorted(self._at):
            if offset <= end:
                self._met[offset]()
                self._at.pop(offset)()
        piece = self._data[self.given : end]
        view[: len(piece)] = piece
        self.given = end
        return len(piece)


@dataclass
class Ways:
    """The services, and the nodes by their number in MetaDB."""

    services: Services
    nodes: dict[int, KillableServer]

    def upload(
        self,
        source: Source | bytes,
        policy: Policy = COPIES,
        name: str = "a file",
        hint: int | None = None,
        how: Compression | None = None,
    ) -> File:
        with self.services.uploader.begin(soon()) as session:
            given = Source(source) if isinstance(source, bytes) else source
            said: dict[str, Any] = {"name": name, "content_type": "text/x", "policy": policy}
            session.add(given, **said, size_hint=hint, compression=how)
            [file] = session.commit()
            return file

    def download(self, file: File, start: int = 0, stop: int | None = None) -> bytes:
        stop = file.size if stop is None else stop
        return b"".join(bytes(view) for view in self.services.downloader.read(file, start, stop, soon()))

    def read_until_it_fails(self, file: File) -> tuple[bytes, DistfsError | None]:
        """What came before the error."""
        came = b""
        try:
            for view in self.services.downloader.read(file, 0, file.size, soon()):
                came += bytes(view)
        except DistfsError as e:
            return came, e
        return came, None

    def paths(self, file: File, ordinal: int = 0) -> dict[int, Path]:
        """Where the fragments of a slice are, by index."""
        piece = file.slices[ordinal]
        return {
            index: self.nodes[node].store.path(FragmentId(piece.id, index))
            for index, node in enumerate(piece.nodes)
            if node
        }

    def fragments(self) -> list[Path]:
        """Every fragment on every node."""
        return [
            path
            for node in self.nodes.values()
            for path in (node.store.folder / "data").rglob("*")
            if path.is_file()
        ]

    def kill(self, node: int) -> None:
        """As kill -9 does: it answers nobody any more."""
        server = self.nodes[node]
        server.shutdown()
        server.server_close()
        server.cut()

    def blocks_out(self) -> int:
        return self.services.uploader.resources.pool.usage().blocks

    def assert_clean(self) -> None:
        """Nothing of any transfer that has ended is held: blocks, in-flight bytes, temp files, buffers, threads."""
        eventually(lambda: self.blocks_out() == 0, "every block came back")
        placement = self.services.uploader.placement
        eventually(lambda: not any(placement._in_flight.values()), "no bytes are in flight")
        for server in self.nodes.values():
            assert_no_litter(server.store)
        executor = self.services.uploader.resources.executor
        eventually(lambda: not executor._waiting, "no work waits for a thread")
        probes = [executor.submit(int) for _ in range(executor._most)]
        assert [probe.result(60) for probe in probes] == [0] * len(probes)


def header_of(path: Path) -> FragmentHeader:
    return FragmentHeader.unpack(path.read_bytes())[0]


def flip(path: Path, offset: int) -> None:
    """Damage one byte; offsets from the end are negative."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


@contextmanager
def byte_ways(url: str, folder: Path, count: int = 3, stall: float = 5, **storage: int) -> Iterator[Ways]:
    """Services over ``count`` nodes that MetaDB at ``url`` knows."""
    config = config_of(url, stall, **storage)
    # Nobody is asked twice before a node has stalled: whom a busy machine makes wait decides nothing.
    config = replace(config, peers=replace(config.peers, hedge_min=Seconds(stall)))
    services = build(config)
    cluster = services.meta.cluster_id(soon())
    with ExitStack() as stack:
        stack.callback(services.close)
        nodes = {}
        for number in range(count):
            server = stack.enter_context(serving(folder / f"n{number}", config.node, cluster, Seconds(stall)))
            nodes[register(services, server)] = server
        yield Ways(services, nodes)


def register(services: Services, server: KillableServer) -> int:
    """Say that a node lives; its number."""
    info = server.store.info(Deadline(60))
    report = NodeReport(info.node, server.address, "", info.capacity, info.used, info.free, "active")
    return services.meta.heartbeat(report, soon())
