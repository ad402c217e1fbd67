"""Fragments on a node's disk are damaged in every way: nobody reads a wrong byte, scrub finds it, repair heals it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from distfs.deadline import Deadline
from distfs.formats.fragment import ENTRY_SIZE, FOOTER_SIZE, read_layout
from distfs.model import Policy
from tests.cluster import Cluster, MakeCluster
from tests.cluster.healing import is_sound, noise, settings, wait_whole
from tests.contract.litter import eventually
from tests.postgres import run_sql

SIZE = 600_000  # three slices of at most 256 KiB
_TABLE_ENTRY = ENTRY_SIZE // 2


# --- the ways of damage ------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    """One bit, as a decaying disk would: neither size nor times tell."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _table_offset(path: Path) -> int:
    data = path.read_bytes()
    layout = read_layout(len(data), lambda length, offset: data[offset : offset + length])
    return layout.cells_at + layout.table.offsets[-1]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a cell": lambda path: _flip(path, _table_offset(path) // 2),
    "the last byte of the cells": lambda path: _flip(path, _table_offset(path) - 1),
    "the table": lambda path: _flip(path, _table_offset(path) + _TABLE_ENTRY),
    "the footer": lambda path: _flip(path, path.stat().st_size - FOOTER_SIZE // 2),
    "the header": lambda path: _flip(path, 40),
    "cut short in its cells": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut short by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer than it was": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
}


def _swap(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


# --- where fragments are -----------------------------------------------------------------------------------


def places(cluster: Cluster, uuid: str) -> list[list[Path]]:
    """Where MetaDB says the file's fragments are: for each slice, for each index."""
    folders = {cluster.node(i).id: cluster.node_folder(i) for i in range(len(cluster.nodes))}

    def place(slice_id: UUID, index: int, node: int) -> Path:
        name = f"{slice_id}.{index}"
        return folders[node] / "data" / name[:2] / name[2:4] / name

    return [
        [place(piece.id, index, node) for index, node in enumerate(piece.nodes)]
        for piece in cluster.meta.file(UUID(uuid), Deadline(30)).slices
    ]


def all_sound(cluster: Cluster, uuids: Sequence[str]) -> bool:
    return all(is_sound(path) for uuid in uuids for of_slice in places(cluster, uuid) for path in of_slice)


# --- every damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "nodes"), [("1+1", 3), ("4+2", 7)])
def test_every_damage_is_read_around_found_by_scrub_and_healed(
    make_cluster: MakeCluster, policy: str, nodes: int
) -> None:
    """First with nobody who scrubs or repairs; then, with what readers noted forgotten, by scrub alone."""
    m = Policy.parse(policy).m
    cluster = make_cluster(nodes, settings(policy, upkeep={"enabled": "false"}))
    files = {cluster.upload(noise(SIZE, seed)): noise(SIZE, seed) for seed in range(len(DAMAGES) + 2)}
    uuids = list(files)
    hurt = damage_all(cluster, uuids, m)
    assert not any(map(is_sound, hurt))
    for uuid, data in files.items():
        assert cluster.download(uuid) == data
    assert not any(map(is_sound, hurt)), "nobody healed them yet"

    cluster.stop_service()
    run_sql(cluster.metadb_url, "DELETE FROM damage")
    cluster.settings["upkeep"]["enabled"] = "true"
    cluster.write_settings()
    cluster.start_service()
    eventually(lambda: all_sound(cluster, uuids), "scrub and repair have healed every fragment")
    wait_whole(cluster, uuids, m)
    for uuid, data in files.items():
        assert cluster.download(uuid) == data


def damage_all(cluster: Cluster, uuids: Sequence[str], m: int) -> list[Path]:
    """Each damage to ``m`` fragments of every slice of a file of its own; -> all that were hurt."""
    hurt: list[Path] = []
    for damage, uuid in zip(DAMAGES.values(), uuids):
        for of_slice in places(cluster, uuid):
            for path in of_slice[:m]:
                damage(path)
                hurt.append(path)
    for one, other in zip(*(places(cluster, uuid) for uuid in uuids[-2:])):
        _swap(one[0], other[0])
        hurt += [one[0], other[0]]
    return hurt


# --- a folder that takes no changes ------------------------------------------------------------------------


@contextmanager
def unchangeable(folder: Path) -> Iterator[None]:
    """A node's folder is read-only for a while; where that needs more rights than ours, nothing can be written."""
    bind = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    if bind.returncode == 0:
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    aside = folder / "tmp.aside"
    (folder / "tmp").rename(aside)
    (folder / "tmp").touch()
    try:
        yield
    finally:
        (folder / "tmp").unlink()
        aside.rename(folder / "tmp")


def test_a_folder_gone_read_only_is_read_from_and_its_damage_made_anew_elsewhere(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(3, settings("1+1", upkeep={"scrub_period": "500ms"}))
    files = {cluster.upload(noise(SIZE, seed)): noise(SIZE, seed) for seed in range(6)}
    own = cluster.fragments(0)
    with unchangeable(cluster.node_folder(0)):
        for seed in range(6, 10):
            files[cluster.upload(noise(SIZE, seed))] = noise(SIZE, seed)
        assert cluster.fragments(0) == own
        for path in cluster.fragments(1)[::2]:
            _flip(path, 40)
        for uuid, data in files.items():
            assert cluster.download(uuid) == data
        eventually(lambda: all_sound(cluster, list(files)), "what was damaged is made anew")
        wait_whole(cluster, files, m=1)
    for uuid, data in files.items():
        assert cluster.download(uuid) == data


def test_damage_on_a_read_only_folder_does_not_hold_up_the_scrub_of_the_rest(
    make_cluster: MakeCluster,
) -> None:
    """What cannot be put aside there is noted all the same, and what is behind it is looked at, too."""
    cluster = make_cluster(2, settings("1+1", upkeep={"enabled": "false"}))
    uuids = [cluster.upload(noise(SIZE, seed)) for seed in range(4)]
    hurt = cluster.fragments(0)[::3]
    for path in hurt:
        _flip(path, 40)
    cluster.stop_service()
    cluster.settings["upkeep"]["enabled"] = "true"
    cluster.write_settings()
    with unchangeable(cluster.node_folder(0)):
        cluster.service.start()  # it cannot be ready: one node alone takes no file
        eventually(lambda: damaged(cluster) >= {path.name for path in hurt}, "scrub has noted all of them")
    cluster.kill_service()
    cluster.start_service()
    eventually(lambda: all_sound(cluster, uuids), "healed as soon as the folder can be written")
    wait_whole(cluster, uuids, m=1)


def damaged(cluster: Cluster) -> set[str]:
    """The fragments that are noted as damaged."""
    rows = run_sql(cluster.metadb_url, "SELECT slice_id, index FROM damage")
    return {f"{slice_id}.{index}" for slice_id, index in rows}
