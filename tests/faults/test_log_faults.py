"""The log's disk is full, read-only or gone, its clock jumps: requests go on, and what is lost is counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from distfs.config.settings import LogConfig
from distfs.telemetry.log_files import LogFile
from distfs.telemetry.log_search import Wanted, search
from tests.cluster.harness import Cluster
from tests.contract.litter import eventually
from tests.small_disk import SMALL, _mount


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not _mount("tmpfs", folder, "-o", f"size={SMALL}"):
        pytest.skip("only root can mount a disk of its own; what it says is tried in test_log_files.py")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """To the last byte; -> what fills it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(4096)):
                pass
    assert os.statvfs(disk).f_bavail == 0
    return filler


def dropped(cluster: Cluster) -> float:
    answer = cluster.request("GET", "/metrics")
    found = (
        s for f in families(answer.text) for s in f.samples if s.name == "distfs_log_dropped_lines_total"
    )
    return next(found).value


def works(cluster: Cluster, id: str) -> None:
    """An upload and a download, whatever becomes of their lines."""
    answer = cluster.request("PUT", "/upload/x", b"data", {"X-Request-Id": id})
    assert answer.status == 201, answer.text
    assert cluster.request("GET", f"/download/{answer.text.strip()}").body == b"data"


def test_requests_go_on_while_the_disk_of_the_log_is_full_read_only_or_gone(
    disk: Path, tmp_path: Path, metadb_url: str
) -> None:
    logs = disk / "logs"
    settings = {"log": {"dir": str(logs)}}
    with Cluster(tmp_path / "cluster", metadb_url, nodes=2, config=settings) as cluster:
        works(cluster, "well")
        eventually(lambda: '"well"' in (logs / "service.log").read_text(), "it is logged")
        assert dropped(cluster) == 0
        filler = fill(disk)

        def lost_more(before: float) -> bool:
            works(cluster, "lost")
            return dropped(cluster) > before

        eventually(lambda: lost_more(0), "lines are lost, and counted")
        filler.unlink()
        said = "lines of the log were dropped here: No space left on device"

        def told(what: str) -> bool:
            works(cluster, "again")
            file = logs / "service.log"
            return file.exists() and what in file.read_text()

        eventually(lambda: told(said), "it is said when there is room again")
        lost = dropped(cluster)
        assert _mount("tmpfs", logs, "-o", "ro")
        try:
            eventually(lambda: lost_more(lost), "a read-only disk is borne, too")
        finally:
            subprocess.run(["umount", "-l", str(logs)], check=True)
        eventually(lambda: told("Read-only file system"), "it is said")
        shutil.rmtree(logs)
        eventually(lambda: told('"again"'), "the folder is made anew")
        for line in (logs / "service.log").read_text().splitlines():
            json.loads(line)  # none is cut


def test_lines_of_a_clock_that_jumps_are_all_kept_and_found(tmp_path: Path) -> None:
    file = LogFile(LogConfig(dir=str(tmp_path)), "service", aside=False)
    for when in ("2026-01-02", "2099-12-31", "1970-01-01", "2026-01-03"):
        file.write(json.dumps({"time": f"{when}T00:00:00.000Z", "request_id": "r"}) + "\n")
    file.close()
    os.utime(tmp_path / "service.log", (0, 0))
    assert len(list(search([tmp_path], Wanted(request="r")))) == 4
    since = Wanted(request="r", since="2026-01-01T00:00:00.000Z")
    assert len(list(search([tmp_path], since))) == 3
