"""docs/logs-to-others.md: each example can be read, and names what a line of the log has. None of the programs is in
Debian or on PyPI, so none reads it here."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from distfs.telemetry.logs import JsonFormatter

PAGE = (Path(__file__).resolve().parents[2] / "docs/logs-to-others.md").read_text("utf-8")
EXAMPLES: list[dict[str, Any]] = [
    yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]
LINE = json.loads(JsonFormatter("service").line(1e9, "INFO", "r", "distfs.access", "request", {}))


def test_there_is_one_for_each() -> None:
    assert [next(iter(example)) for example in EXAMPLES] == ["server", "sources", "parsers"]
    assert PAGE.count("/var/log/distfs/*.log") == 3


def test_what_they_name_is_in_a_line() -> None:
    promtail, _, fluent_bit = EXAMPLES
    json_stage, timestamp, labels = promtail["scrape_configs"][0]["pipeline_stages"]
    assert set(json_stage["json"]["expressions"]) <= set(LINE)
    assert set(labels["labels"]) <= set(LINE)
    assert timestamp["timestamp"]["source"] in LINE
    assert fluent_bit["parsers"][0]["time_key"] in LINE


def test_a_time_is_as_they_are_told() -> None:
    form = EXAMPLES[2]["parsers"][0]["time_format"].replace(".%L", ".%f")
    assert datetime.strptime(LINE["time"], form).replace(tzinfo=UTC).timestamp() == 1e9
