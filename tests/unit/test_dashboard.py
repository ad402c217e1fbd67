"""The dashboard for Grafana names metrics that there are, in queries that Prometheus takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from distfs.telemetry.metrics import HISTOGRAM, METRICS

ROOT = Path(__file__).resolve().parents[2]
BOARD: Any = json.loads((ROOT / "monitoring/grafana.json").read_text("utf-8"))
PANELS: list[Any] = BOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
OF_GRAFANA = {"instance", "job"}  # labels that Prometheus adds


def test_it_has_what_grafana_looks_for() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= BOARD.keys()
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    [source] = [each for each in BOARD["templating"]["list"] if each["type"] == "datasource"]
    for panel in PANELS:
        assert panel["type"] in ("row", "timeseries")
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}


def test_no_panel_is_upon_another() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


@pytest.mark.parametrize("query", QUERIES)
def test_it_names_metrics_and_labels_that_there_are(query: str) -> None:
    known = {metric.name: metric for metric in METRICS}
    labels: set[str] = set(OF_GRAFANA)
    for name in re.findall(r"\bdistfs_\w+", query):
        base = name.removesuffix("_bucket") if name not in known else name
        labels |= set(known[base].labels) | ({"le"} if known[base].kind == HISTOGRAM else set())
    asked = re.findall(r"by \(([^)]*)\)", query) + re.findall(r"(\w+)=", query)
    assert {label for each in asked for label in each.split(", ")} <= labels


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_prometheus_takes_each_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"a:{at}", "expr": query.replace("$__rate_interval", "5m")}
        for at, query in enumerate(QUERIES)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "a", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
