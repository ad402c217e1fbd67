"""A node is killed: somebody is told, with the command that mends it, and told again when it is over."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distfs.alerting.tell import Told
from distfs.deadline import Deadline
from distfs.upkeep.db import UpkeepDB
from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import distfs
from tests.contract.litter import eventually
from tests.hooks import webhook
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("prometheus", "prometheus-alertmanager")
QUICK = {"node": {"heartbeat": "200ms", "down_after": "2s"}}


def alerts_file(folder: Path) -> Path:
    """That of users; but nothing has to hold for long."""
    text = (ROOT / "monitoring/alerts.yml").read_text("utf-8")
    quick, changed = re.subn(r"^    for: \w+$", "    for: 1s", text, flags=re.MULTILINE)
    assert changed
    (folder / "alerts.yml").write_text(quick)
    return folder / "alerts.yml"


@contextmanager
def monitored(cluster: Cluster, folder: Path, hook: str) -> Iterator[None]:
    """Real ones, that look each second and tell ``hook``."""
    own, other, gossip = (f"127.0.0.1:{free_port()}" for _ in range(3))
    prometheus = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(alerts_file(folder))],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [other]}]}]},
        "scrape_configs": [
            {"job_name": "distfs", "static_configs": [{"targets": [cluster.url.removeprefix("http://")]}]}
        ],
    }
    route = {"receiver": "hook", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    receivers = [{"name": "hook", "webhook_configs": [{"url": hook, "send_resolved": True}]}]
    (folder / "prometheus.yml").write_text(json.dumps(prometheus))  # JSON is YAML
    (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": receivers}))
    one = f"--config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/series"
    two = f"--config.file={folder}/alertmanager.yml --storage.path={folder}/told --cluster.listen-address={gossip}"
    runs = (
        f"prometheus {one} --web.listen-address={own}",
        f"prometheus-alertmanager {two} --web.listen-address={other}",
    )
    with ExitStack() as stack:
        log = stack.enter_context((folder / "monitors.log").open("wb"))
        for words in runs:
            process = subprocess.Popen(words.split(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        try:
            yield
        except BaseException:
            print((folder / "monitors.log").read_text("utf-8"))
            raise


@pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS),
    reason=f"not installed (Debian's packages have these names): {', '.join(PROGRAMS)}",
)
def test_prometheus_tells_that_a_node_is_down_and_that_it_is_back(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(config=QUICK)

    def told(status: str) -> list[dict[str, Any]]:
        return [
            alert
            for message in came
            for alert in message["alerts"]
            if alert["labels"]["alertname"] == "DistfsNodeDown" and alert["status"] == status
        ]

    with webhook() as (hook, came), monitored(cluster, tmp_path, hook):
        cluster.kill_node(1)
        eventually(lambda: told("firing"), "it is told")
        [alert] = told("firing")[:1]
        assert alert["labels"]["node"] == str(cluster.node(1).id)
        assert alert["annotations"]["command"] == "distfs nodes"
        assert alert["annotations"]["summary"] == f"storage node {cluster.node(1).id} is down"
        assert alert["annotations"]["runbook_url"] == "docs/runbook.md#node-down"
        assert not told("resolved")
        cluster.start_node(1)
        eventually(lambda: told("resolved"), "it is told that it is over")


def test_the_command_shows_what_a_service_sees(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2)
    eventually(lambda: distfs(cluster, "alerts").code == 0, "a service has looked")
    told = distfs(cluster, "alerts")
    assert (told.code, told.out) == (0, "nothing burns\n")
    cluster.kill_service()
    told_words = asdict(Told("DistfsNodeDown node=3", "warning", "it is down", "distfs nodes", "a#b", 0.0))
    db = UpkeepDB(cluster.meta)
    db.save_worker("alerts", "idle", {"burning": [told_words]}, Deadline(60))
    told = distfs(cluster, "alerts")
    assert told.code == 1
    assert re.search(r"DistfsNodeDown node=3 .* distfs nodes .*it is down", told.out)
    told = distfs(cluster, "alerts", "--json")
    assert json.loads(told.out) == [told_words]
