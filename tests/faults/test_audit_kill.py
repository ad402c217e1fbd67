"""The audit log of a service of several processes, killed, and of commands beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import signal
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from distfs.commands.audit import verify
from tests.cluster.harness import MakeCluster
from tests.cluster.operating import QUICK, distfs
from tests.contract.litter import eventually


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob("audit*.log*") for line in file.read_text().splitlines()]


def verified(folder: Path) -> None:
    reports = verify(sorted(folder.glob("audit*.log*")))
    assert not [report.wrong for report in reports if report.wrong]


def test_no_upload_that_was_acknowledged_lacks_its_line_whoever_was_killed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**QUICK, "http": {"processes": 3}, "audit": {"file": "audit.log"}})
    acknowledged: list[str] = []
    stop = threading.Event()

    def upload() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = cluster.request("PUT", "/upload/x", os.urandom(100))
                if answer.status == 201:
                    acknowledged.append(answer.text.strip())

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            count = len(acknowledged)
            eventually(lambda count=count: len(acknowledged) > count + 20, "uploads go on")  # type: ignore[misc]
            victim = psutil.Process(cluster.service.pid).children()[0]
            victim.send_signal(signal.SIGKILL)
            eventually(lambda victim=victim: not victim.is_running(), "it is gone")  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    written = {line["object"] for line in lines_of(cluster.folder) if line["action"] == "upload"}
    assert set(acknowledged) <= written
    assert cluster.service.stop() == 0
    assert len(list(cluster.folder.glob("audit*.log"))) <= 4, "successors go on with files of the dead"
    verified(cluster.folder)


def test_what_operators_do_is_written_beside_the_service(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**QUICK, "audit": {"file": "audit.log"}})
    uuid = cluster.upload(b"1")
    assert cluster.request("DELETE", f"/files/{uuid}").status == 204
    file = str(cluster.folder / "audit.log")  # commands run in another folder
    for words in (
        ("undelete", uuid),
        ("undelete", str(uuid4())),
        ("drain", "1", "--no-wait"),
        ("drain", "1", "--dry-run"),
        ("undrain", "1"),
        ("forget", "2"),
        ("rebalance",),
        ("repair", "--no-wait"),
        ("repair", "--now", "--no-wait"),
        ("trash", "list"),
        ("trash", "empty", "--no-wait"),
        ("settings",),
        ("nodes",),
        ("fsck",),
        ("migrate",),
    ):
        distfs(cluster, *words, DISTFS_AUDIT_FILE=file)
    me = pwd.getpwuid(os.getuid()).pw_name
    told = [(line["action"], line["outcome"]) for line in lines_of(cluster.folder) if line["who"] == me]
    assert told == [
        ("command undelete", "allow"),
        ("command undelete", "deny"),
        ("command drain", "allow"),
        ("command undrain", "allow"),
        ("command forget", "deny"),
        ("command rebalance", "allow"),
        ("command repair", "allow"),
        ("command trash empty", "allow"),
        ("command migrate", "allow"),
    ]
    verified(cluster.folder)
    listed = distfs(cluster, "audit", "verify", *map(str, cluster.folder.glob("audit*.log")))
    assert listed.code == 2  # --config is no flag of its


def test_a_service_whose_log_cannot_be_written_does_not_start(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**QUICK, "audit": {"file": "audit.log"}})
    cluster.service.stop()
    cluster.settings = {**cluster.settings, "audit": {"file": "none/audit.log"}}
    cluster.write_settings()
    cluster.service.start()
    assert cluster.service.wait() == 2
    assert (
        "the audit log none/audit.log cannot be written" in cluster.service.log.read_text().splitlines()[-1]
    )
