"""``distfs trash``, as an operator runs it."""

from __future__ import annotations

import os

from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import QUICK, distfs, url_of
from tests.contract.litter import eventually
from tests.postgres import run_sql


def deleted(cluster: Cluster, name: str, size: int = 70_000) -> str:
    uuid = cluster.upload(os.urandom(size), name)
    assert cluster.request("DELETE", f"/files/{uuid}").status == 204
    return uuid


def on_disk(cluster: Cluster) -> int:
    return sum(len(list(cluster.node_folder(i).rglob("*-*.*"))) for i in range(len(cluster.nodes)))


def test_the_trash_is_listed_and_emptied_of_one_file_or_of_all(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    first, second = deleted(cluster, "first"), deleted(cluster, "second")
    told = distfs(cluster, "trash", "list")
    assert told.code == 0
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines] == ["UUID", first, second, "2"]
    assert "68.4 KiB" in lines[1]
    assert "can be undeleted for 7.0 d" in lines[1]
    assert lines[2].endswith("  second")
    assert lines[3] == "2 files, 273.4 KiB on the storage nodes"
    entries = distfs(cluster, "trash", "list", "--json").entry
    assert [(entry["uuid"], entry["size"], entry["bytes_on_nodes"]) for entry in entries] == [
        (first, 70_000, 140_000),
        (second, 70_000, 140_000),
    ]

    told = distfs(cluster, "trash", "empty", first, "--no-wait")
    assert (told.code, told.out) == (0, "1 file, 136.7 KiB on the storage nodes: being erased\n")
    assert distfs(cluster, "undelete", first).code == 1
    assert "being removed" in distfs(cluster, "trash", "list").out.splitlines()[1]
    told = distfs(cluster, "trash", "empty", "--no-wait")
    assert told.code == 0
    run_sql(url_of(cluster), "UPDATE trash SET erase_at = now()")  # as if a minute had passed
    told = distfs(cluster, "trash", "empty")
    assert (told.code, told.out.endswith(": erased\n")) == (0, True)
    eventually(lambda: on_disk(cluster) == 0, "the bytes are gone")
    assert distfs(cluster, "trash", "list").out == "0 files, 0 bytes on the storage nodes\n"


def test_what_is_not_in_the_trash_is_not_emptied_and_nobody_who_does_it_is_said(by_hand: Cluster) -> None:
    kept = by_hand.upload(b"kept")
    told = distfs(by_hand, "trash", "empty", kept)
    assert (told.code, "not in the trash" in told.err or f"no file {kept} in the trash" in told.err) == (
        1,
        True,
    )
    gone = deleted(by_hand, "gone")
    run_sql(url_of(by_hand), "DELETE FROM worker")
    told = distfs(by_hand, "trash", "empty", gone, "--patience", "-60")
    assert told.code == 1
    assert "no service runs the worker 'trash'" in told.err
    assert by_hand.download(kept) == b"kept"
