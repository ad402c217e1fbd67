"""``distfs doctor``: each thing that is wrong is found, and has a line that mends it."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.local.machine import Level, Mount, mounted, mounted_wrong
from distfs.meta import MetaDB
from distfs.recovery.db import RecoveryDB
from tests.certificates import Certificates
from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import clean_environment
from tests.cluster.operating import QUICK, Ended, distfs, kill_and_notice, url_of
from tests.contract.litter import eventually
from tests.contract.samples import soon
from tests.ports import refusing
from tests.postgres import run_sql

#: The PostgreSQL of tests is one that may lose everything, and is found to be.
TESTS_OWN = tuple(f"PostgreSQL runs with {name} off" for name in ("fsync", "full_page_writes"))


@pytest.fixture(scope="module")
def cluster(share_cluster: MakeCluster) -> Cluster:
    return share_cluster(config=QUICK)


def doctor(cluster: Cluster, *flags: str, **environ: str) -> Ended:
    here = {"DISTFS_LOCAL_DATA": str(cluster.folder), "DISTFS_NODE_DATA": str(cluster.node_folder(0))}
    here["DISTFS_HTTP_PORT"] = str(urlsplit(cluster.url).port)
    return distfs(cluster, "doctor", *flags, **{**here, **environ})


def wrong(cluster: Cluster, **environ: str) -> list[dict[str, Any]]:
    """What wants something done; each of it has a remedy."""
    told = doctor(cluster, "--json", **environ)
    found = [each for each in told.entry if each["level"] in ("warn", "bad")]
    assert told.code == (1 if found else 0)
    return [each for each in found if not each["what"].startswith(TESTS_OWN)]


def the_one(cluster: Cluster, about: str, **environ: str) -> dict[str, Any]:
    [found] = [each for each in wrong(cluster, **environ) if each["about"] == about]
    return found


def test_a_cluster_that_is_well_is_told_to_be(cluster: Cluster) -> None:
    eventually(lambda: wrong(cluster) == [], "the upkeep has begun, and all is well")
    told = doctor(cluster)
    for said in ("ok    metadb   PostgreSQL ", "3 are up, and answer here", f"{cluster.url} answers"):
        assert said in told.out
    assert f"{cluster.node_folder(2)}: " in told.out


def test_a_node_that_is_down_is_named_with_what_to_do(cluster: Cluster) -> None:
    down = kill_and_notice(cluster, 1)
    found = the_one(cluster, "nodes")
    assert f"node {down} at " in found["what"]
    assert f"`distfs forget {down}`" in found["remedy"]
    cluster.start_node(1)
    eventually(lambda: wrong(cluster) == [], "it is back")


def test_a_node_that_does_not_answer_from_here_is_not_taken_for_well(cluster: Cluster) -> None:
    as_it_was = cluster.settings
    cluster.nodes[2].stop()
    with refusing() as port:
        elsewhere = {"advertise": f"127.0.0.1:{port}"}
        cluster.settings = {**as_it_was, "node": {**as_it_was["node"], **elsewhere}}
        cluster.write_settings()
        cluster.start_node(2)
        try:
            found = the_one(cluster, "nodes")
            assert "reports to MetaDB, and does not answer from here: " in found["what"]
            assert f"127.0.0.1:{port} is its address" in found["remedy"]
        finally:
            cluster.settings = as_it_was
            cluster.write_settings()
            cluster.nodes[2].stop()
            cluster.start_node(2)
    eventually(lambda: wrong(cluster) == [], "it answers")


def test_without_metadb_the_rest_is_told_all_the_same(cluster: Cluster) -> None:
    told = doctor(cluster, DISTFS_METADB_URL="postgresql://nobody@127.0.0.1:1/none")
    assert told.code == 1
    assert "-> start PostgreSQL, or correct metadb.url" in told.out
    assert f"{cluster.url} answers" in told.out


def test_a_metadb_that_forgets_is_found(cluster: Cluster) -> None:
    database = urlsplit(url_of(cluster)).path[1:]
    run_sql(url_of(cluster), f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    try:
        assert "synchronous_commit off" in the_one(cluster, "metadb")["what"]
    finally:
        run_sql(url_of(cluster), f'ALTER DATABASE "{database}" RESET synchronous_commit')


def test_a_metadb_that_is_still_made_anew_is_found(cluster: Cluster) -> None:
    with contextlib.closing(MetaDB(MetaDBConfig(url=url_of(cluster)))) as meta:
        RecoveryDB(meta).begin(soon())
        try:
            assert "rebuild --from-nodes --finish" in the_one(cluster, "metadb")["remedy"]
        finally:
            RecoveryDB(meta).end(soon())


def test_other_times_than_the_clusters_are_found(cluster: Cluster) -> None:
    found = the_one(cluster, "config", DISTFS_UPKEEP_TRASH_TTL="3d")
    assert "upkeep.trash_ttl" in found["what"]
    assert "`distfs settings --adopt`" in found["remedy"]


@contextlib.contextmanager
def another_program() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_program_at_the_port_is_found(cluster: Cluster) -> None:
    with another_program() as port:
        found = the_one(cluster, "service", DISTFS_HTTP_PORT=str(port))
    assert f"another program listens at http://127.0.0.1:{port}" in found["what"]


def test_what_keeps_a_service_from_starting_is_found(cluster: Cluster) -> None:
    environ = {"DISTFS_HTTP_HOST": "0.0.0.0"}
    assert "write `auth: on`" in the_one(cluster, "config", **environ)["remedy"]


def test_an_audit_log_that_is_nowhere_is_told_until_that_is_meant(cluster: Cluster) -> None:
    found = the_one(cluster, "config", DISTFS_AUTH_MODE="on")
    assert "noted nowhere" in found["what"]
    assert "audit.file" in found["remedy"]
    assert wrong(cluster, DISTFS_AUTH_MODE="on", DISTFS_AUDIT_FILE="off") == []


def test_limits_that_are_too_low_are_found_with_figures(cluster: Cluster) -> None:
    assert (
        "http.max_connections is 900,000"
        in the_one(cluster, "limits", DISTFS_HTTP_MAX_CONNECTIONS="900000")["what"]
    )
    found = the_one(cluster, "memory", DISTFS_STORAGE_MEMORY_BUDGET="9000GB")
    assert found["remedy"].startswith("set storage.memory_budget to ")


def test_a_certificate_that_x_and_one_that_is_broken_are_found(cluster: Cluster, tmp_path: Path) -> None:
    made = Certificates(tmp_path / "ca")
    pair = made.wrong("expired")
    ends = {"DISTFS_TLS_CA": made.ca, "DISTFS_TLS_CERT": pair.cert, "DISTFS_TLS_KEY": pair.key}
    found = [each for each in wrong(cluster, **ends) if each["about"] == "tls"]
    assert [each["remedy"] for each in found] == ["have it renewed"]
    Path(pair.key).write_text("no key\n")
    assert "is not PEM" in next(each["what"] for each in wrong(cluster, **ends) if each["about"] == "tls")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_disk_in_memory_and_one_that_is_read_only_are_found(cluster: Cluster, in_memory: Path) -> None:
    found = the_one(cluster, "disk", DISTFS_NODE_DATA=str(in_memory))
    assert (found["level"], "is in memory (tmpfs at " in found["what"]) == ("warn", True)
    subprocess.run(["mount", "-o", "remount,ro", str(in_memory)], check=True)
    found = wrong(cluster, DISTFS_NODE_DATA=str(in_memory))[0]
    assert (found["level"], found["remedy"]) == ("bad", f"mount -o remount,rw {in_memory}")


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "memory"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    folder.chmod(0o700)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_table_of_mounts_is_read_as_proc_has_it(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
        r"40 22 0:35 / /mnt/my\040disk\134x ro,nosuid - nfs4 host:/export rw,vers=4.2" + "\n"
    )
    known = mounted(table)
    assert known["8:1"] == Mount("8:1", "/", "ext4", frozenset(["rw", "relatime", "errors=remount-ro"]))
    assert (known["0:35"].point, known["0:35"].kind) == ("/mnt/my disk\\x", "nfs4")
    assert mounted(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("kind", "options", "levels"),
    [
        ("ext4", ["rw", "relatime"], []),
        ("ext4", ["ro"], [Level.BAD]),
        ("ext4", ["rw", "barrier=0"], [Level.BAD]),
        ("xfs", ["rw", "nobarrier"], [Level.BAD]),
        ("tmpfs", ["rw"], [Level.WARN]),
        ("nfs4", ["ro"], [Level.BAD, Level.WARN]),
    ],
)
def test_how_a_disk_is_mounted_is_judged(kind: str, options: list[str], levels: list[Level]) -> None:
    found = list(mounted_wrong(Path("node1"), Mount("8:1", "/mnt/my disk", kind, frozenset(options))))
    assert [each.level for each in found] == levels
    assert all(each.remedy for each in found)


def _has_stacks(log: Path) -> bool:
    return "most recent call first" in log.read_text()


def test_a_part_tells_the_stacks_of_its_threads_when_asked(cluster: Cluster) -> None:
    for process in (cluster.service, cluster.nodes[0]):
        os.kill(process.pid, signal.SIGUSR1)
        eventually(partial(_has_stacks, process.log), "the stacks are in its log")
        assert process.alive
    eventually(lambda: wrong(cluster) == [], "they go on")


def test_the_status_is_shown_over_and_over(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "distfs", "status", "--watch", "0.1", "--service", cluster.url]
    command += ["--config", str(cluster.folder / "config.yml")]
    # Who runs the tests in the background has it ignored from the start.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    shown = subprocess.Popen(
        command,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heard,  # noqa: PLW1509 - it makes one system call
    )
    with shown:
        assert shown.stdout is not None
        seen = 0
        for line in shown.stdout:
            seen += line.startswith("files ")
            if seen == 3:
                shown.send_signal(signal.SIGINT)
                break
        shown.stdout.read()
        assert shown.wait() == 130
    told = distfs(cluster, "status", "--watch", "--json")
    assert (told.code, "run `distfs status --json`" in told.err) == (3, True)
    assert distfs(cluster, "status", "--watch", "0").code == 2
