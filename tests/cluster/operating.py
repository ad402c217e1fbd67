"""What tests of an operator's commands have in common: quick clusters, files on them, and how a command is run."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import nursery
from tests.cluster.harness import PATIENCE_S, Cluster, Settings, clean_environment
from tests.contract.litter import eventually

SLICE = 64 * 1024

#: Nodes are noticed to be down within a second; upkeep looks ten times a second; slices are small.
QUICK: Settings = {
    "node": {"heartbeat": "100ms", "down_after": "1s"},
    "peers": {"stall_timeout": "5s"},
    "storage": {"slice_size": SLICE, "block_size": "16KiB"},
    "upkeep": {"interval": "100ms"},
}
#: The same with nobody who repairs, so that what a test breaks stays broken.
BY_HAND: Settings = {**QUICK, "upkeep": {"enabled": "false"}}


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def entry(self) -> Any:
        return json.loads(self.out)


def distfs(cluster: Cluster, *words: str, **environ: str) -> Ended:
    """Run ``distfs WORDS`` with the cluster's configuration."""
    command = [sys.executable, "-m", "distfs", *words]
    command += ["--config", str(cluster.folder / "config.yml")]
    done = nursery.run(command, Path.cwd(), clean_environment(**environ), PATIENCE_S)
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def fill(cluster: Cluster, files: int = 6) -> dict[str, bytes]:
    """Files of up to three slices; -> what each holds, by UUID."""
    contents = [os.urandom(1 + SLICE * (i % 3)) for i in range(files)]
    return {cluster.upload(data, f"file {i}"): data for i, data in enumerate(contents)}


def url_of(cluster: Cluster) -> str:
    url: str = json.loads((cluster.folder / "config.yml").read_text())["metadb"]["url"]
    return url


def fragments_of(cluster: Cluster, slice_id: object, nodes: int) -> list[Path]:
    """Files of a slice's fragments, on the first so many nodes."""
    return [p for i in range(nodes) for p in cluster.fragments(i) if p.name.startswith(str(slice_id))]


def all_read_back(cluster: Cluster, files: dict[str, bytes]) -> bool:
    return all(cluster.download(uuid) == data for uuid, data in files.items())


def kill_and_notice(cluster: Cluster, i: int) -> int:
    """kill -9 a node and wait until it is down for everyone; -> its id."""
    cluster.kill_node(i)
    eventually(lambda: not cluster.node(i).alive, f"node {i} is down")
    return cluster.node(i).id
