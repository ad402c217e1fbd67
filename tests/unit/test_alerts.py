"""Alerts: Prometheus and a service find the same in the same numbers, and each alert leads to its remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distfs.alerting.burning import Burning
from distfs.alerting.rules import RULES, page
from distfs.cli import _parser
from distfs.telemetry.metrics import BUCKETS, METRICS

ROOT = Path(__file__).resolve().parents[2]
CASES = yaml.safe_load((ROOT / "monitoring/alerts_test.yml").read_text("utf-8"))["tests"]
TOLD = re.compile(r'alertname="(\w+)"')
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def test_the_file_is_made_from_the_table() -> None:
    assert (ROOT / "monitoring/alerts.yml").read_text("utf-8") == page(), "make docs"


def test_each_has_its_section_in_the_runbook() -> None:
    text = (ROOT / "docs/runbook.md").read_text("utf-8")
    sections = re.findall(r"^## (\S+)$", text, re.MULTILINE)
    assert sections == [rule.section for rule in RULES]
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= set(sections)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_names_a_command_that_there_is(rule: Any) -> None:
    _parser().parse_args(rule.command.format(instance="127.0.0.1:8080").split())


def test_each_is_tried_with_numbers() -> None:
    tried = {
        TOLD.findall(each["expr"])[0]
        for case in CASES
        for each in case["promql_expr_test"]
        if each["exp_samples"]
    }
    assert tried == {rule.name for rule in RULES}


def test_they_name_metrics_that_there_are() -> None:
    names = {metric.name for metric in METRICS}
    asked = set(re.findall(r"\bdistfs_\w+", page()))
    assert {re.sub(r"_(bucket|count)$", "", name) for name in asked} <= names
    assert {float(bound) for bound in re.findall(r'le=~\\"([\d.]+)\\"', page())} <= set(BUCKETS)


@promtool
def test_prometheus_takes_them_and_finds_what_is_expected() -> None:
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *words], cwd=ROOT / "monitoring", capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr


def of_prometheus_alone(case: Any) -> bool:
    return any(series["series"].startswith("up{") for series in case["input_series"])


@pytest.mark.parametrize("case", [c for c in CASES if not of_prometheus_alone(c)], ids=str)
def test_a_service_finds_the_same_by_itself(case: Any) -> None:
    [name] = set(TOLD.findall(str(case)))
    burning = Burning(rule for rule in RULES if rule.name == name)
    expected = {minutes_of(each["eval_time"]): each for each in case["promql_expr_test"]}
    values = [(labels_of(s["series"]), list(expanded(s["values"]))) for s in case["input_series"]]
    for minute in range(max(expected) + 1):
        seen: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for (name, labels), numbers in values:
            if minute < len(numbers):
                seen.setdefault(name, {})[labels] = numbers[minute]
        burning.look(60.0 * minute, 60.0 * minute, seen)
        if asked := expected.get(minute):
            found = {alert.labels for alert in burning.now}
            wanted = {labels_of("x" + (each["labels"] or "{}"))[1] for each in asked["exp_samples"]}
            assert found == wanted, (name, asked["eval_time"])


def minutes_of(time: str) -> int:
    return int(time[:-1]) * {"m": 1, "h": 60}[time[-1]]


def labels_of(series: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    name, _, rest = series.partition("{")
    return name, tuple(sorted(re.findall(r'(\w+)="([^"]*)"', rest)))


def expanded(notation: str) -> Iterator[float]:
    """Prometheus' own for a series of samples: ``1x5``: six times 1; ``0+2x3``: 0 2 4 6."""
    for run in notation.split():
        if found := re.fullmatch(r"(-?[\d.]+)(?:([-+][\d.]+))?x(\d+)", run):
            first, step, count = float(found[1]), float(found[2] or 0), int(found[3])
            yield from (first + step * number for number in range(count + 1))
        else:
            yield float(run)
