"""What tests of healing have in common: quick upkeep, files by UUID, and how to see that they are safe again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.model import FragmentId
from distfs.storage.disk.reader import DiskReader
from tests.cluster.harness import Cluster, Process, Settings
from tests.contract.litter import eventually
from tests.postgres import run_sql

#: Nodes are down after a second, given up half a second later; slices and blocks are small, rates unlimited.
QUICK: Settings = {
    "node": {"heartbeat": "100ms", "down_after": "1s"},
    "peers": {"stall_timeout": "5s", "breaker_pause": "200ms"},
    "storage": {"slice_size": "256KiB", "block_size": "32KiB", "window": "1MiB"},
    "upkeep": {
        "interval": "100ms",
        "repair_delay": "1500ms",
        "repair_rate": 0,
        "scrub_rate": 0,
        "rebalance_rate": 0,
    },
}


def settings(policy: str, **more: Mapping[str, object]) -> Settings:
    """QUICK with a policy, and more in its sections."""
    merged = {section: dict(values) for section, values in QUICK.items()}
    merged["storage"]["policies"] = {"default": policy}
    for section, values in more.items():
        merged.setdefault(section, {}).update(values)
    return merged


def noise(size: int, seed: int = 1) -> bytes:
    """The same bytes for the same seed."""
    return Random(seed).randbytes(size)


def health(cluster: Cluster, uuid: str) -> dict[str, Any]:
    """What ``GET /files/<uuid>`` says of the file's health."""
    answer = cluster.request("GET", f"/files/{uuid}")
    assert answer.status == 200, f"{answer.status} {answer.text}"
    entry: dict[str, Any] = json.loads(answer.body)["health"]
    return entry


def is_whole(cluster: Cluster, uuid: str, m: int) -> bool:
    """Whether ``m`` more nodes may be lost, and nothing is missing."""
    entry = health(cluster, uuid)
    return bool(entry["redundancy_left"] == m and entry["missing_fragments"] == 0)


def wait_whole(cluster: Cluster, uuids: Iterable[str], m: int, seconds: float = 60.0) -> None:
    """Until every file is at full redundancy, with nobody's help."""
    waiting = list(uuids)

    def all_whole() -> bool:
        while waiting and is_whole(cluster, waiting[-1], m):
            waiting.pop()
        return not waiting

    eventually(all_whole, "the files are at full redundancy", seconds)


@contextmanager
def another_service(cluster: Cluster, name: str = "service2") -> Iterator[tuple[Process, str]]:
    """One more service on the same MetaDB, as ready as its first line says, and its URL."""
    argv = list(cluster.service.argv)
    argv[argv.index("--port") + 1] = "0"
    process = Process(name, argv, cluster.folder, cluster.folder / f"{name}.log")
    process.start()
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), process.log.read_text()
        yield process, url
    finally:
        process.kill()


# --- MetaDB against the disks themselves -------------------------------------------------------------------

#: A fragment on a node: (the node's id, the fragment's name).
Place = tuple[int, str]


def kept(cluster: Cluster) -> set[Place]:
    """Where MetaDB says fragments are, those in the trash included."""
    rows = run_sql(
        cluster.metadb_url, "SELECT id, nodes FROM slice UNION ALL SELECT id, nodes FROM trash_slice"
    )
    return {(node, f"{slice_id}.{i}") for slice_id, nodes in rows for i, node in enumerate(nodes) if node}


def on_disk(cluster: Cluster, *, aside: bool = True) -> set[Place]:
    """What the running nodes have, in quarantine too unless ``aside`` is False."""
    found = set()
    for i, process in enumerate(cluster.nodes):
        if process.alive:
            number, folder = cluster.node(i).id, cluster.node_folder(i)
            for part in ("data", "quarantine") if aside else ("data",):
                found |= {(number, path.name) for path in (folder / part).rglob("*.*")}
    return found


def surplus(cluster: Cluster) -> set[Place]:
    """On the disk of a running node, in quarantine too, and wanted by nobody."""
    found = on_disk(cluster)  # first: what is new on a disk meanwhile is no surplus
    return found - kept(cluster)


def wait_no_surplus(cluster: Cluster, seconds: float = 60.0) -> None:
    """Until sweeps, with ages as short as the test's, have left nothing."""
    eventually(lambda: not surplus(cluster), "no orphan is left", seconds)


def is_sound(path: Path) -> bool:
    """Whether the disk holds there what its name says, to the last bit."""
    slice_id, _, index = path.name.partition(".")
    try:
        with closing(DiskReader(path, FragmentId(UUID(slice_id), int(index)), 0)) as reader:
            return not reader.verify(Deadline(30))
    except DistfsError:
        return False
