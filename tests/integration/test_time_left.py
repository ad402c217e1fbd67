"""How long upkeep still takes, as ``distfs status`` tells it: of a round of scrub, and of a drain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distfs.commands.operator import Operator
from distfs.commands.status import show_status
from distfs.deadline import Deadline
from distfs.upkeep.step import Step, Worker
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of, drive
from tests.service import SLICE


class Told:
    """``distfs status``, after a worker has said what it does."""

    def __init__(self, cluster: UpkeepCluster, capsys: pytest.CaptureFixture[str]) -> None:
        self._cluster, self._capsys = cluster, capsys
        self._operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)

    def step(self, worker: Worker) -> Step:
        return self.say(worker, worker.step(Deadline(60)))

    def say(self, worker: Worker, step: Step) -> Step:
        self._cluster.db.save_worker(worker.name, "busy", step.detail, soon())
        return step

    def line(self, name: str) -> str:
        """What stands beside a name, before the table of workers."""
        show_status(self._operator, ["http://127.0.0.1:9"], as_json=False)
        lines = self._capsys.readouterr().out.partition("\nWORKER")[0].splitlines()
        return next((line[11:] for line in lines if line[:11].rstrip() == name), "")

    def entry(self) -> dict[str, Any]:
        show_status(self._operator, ["http://127.0.0.1:9"], as_json=True)
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def worker(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.entry()["workers"] if each["name"] == name)
        return found


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def test_status_tells_how_long_a_round_of_scrub_still_takes(
    cluster: UpkeepCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    told, scrub = Told(cluster, capsys), cluster.scrub()
    cluster.upload(bytes_of(60))  # ten megabytes on each node, of which a piece reads four
    seen = (told.step(scrub) for _ in range(100))
    step = next(each for each in seen if "bytes_left" in each.detail)
    checked, left = step.detail["checked"], step.detail["bytes_left"]
    assert isinstance(checked, int)
    assert isinstance(left, int)
    assert left == pytest.approx((120 - checked) * SLICE, rel=0.05)
    line = told.line("scrub")
    assert " MiB left of its round; about " in line
    assert line.endswith(" MiB/s")
    seconds = left / told.worker("scrub")["detail"]["bytes_per_second"]
    assert told.worker("scrub")["seconds_left"] == round(seconds)
    assert "bytes_left" not in told.say(scrub, drive(scrub)).detail
    assert told.line("scrub") == ""
    assert told.worker("scrub")["seconds_left"] is None


def test_status_tells_how_long_a_drain_still_takes(
    cluster: UpkeepCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    told, rebalance = Told(cluster, capsys), cluster.rebalance(parallel=2)
    file, trashed = cluster.upload(bytes_of(12)), cluster.upload(bytes_of(3, 2))
    cluster.meta.delete_file(trashed.id, soon())
    one, other = sorted(cluster.id(i) for i in (0, 1))
    cluster.start_node(3)
    cluster.start_node(4)
    for node in (one, other):
        cluster.db.set_node_state(node, "draining", soon())
    cluster._nodes()
    sizes = {p.id: p.size for p in file.slices + trashed.slices}
    there = {
        n: [kept.id.slice for kept in cluster.db.fragments_on(n, None, 100, soon())] for n in (one, other)
    }
    assert cluster.db.bytes_kept(one, soon()) == sum(sizes[id] for id in there[one])
    assert told.line(f"node {one}") == f"draining: {len(there[one])} fragments left"

    told.step(rebalance)
    left = cluster.db.fragments_left(one, soon())
    assert 0 < left < len(there[one])
    assert told.line(f"node {one}").startswith(f"draining: {left} fragments left; about ")
    entry, rate = told.entry(), told.worker("rebalance")["detail"]["bytes_per_second"]
    first = cluster.db.bytes_kept(one, soon())
    both = first + cluster.db.bytes_kept(other, soon())
    assert entry["drain_seconds_left"] == {str(one): round(first / rate), str(other): round(both / rate)}
    assert entry["draining"][str(one)] == left
    told.say(rebalance, drive(rebalance))
    assert told.line(f"node {one}") == told.line(f"node {other}") == "empty: safe to unplug"
