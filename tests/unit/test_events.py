"""Each line of the log is of an event from the fixed list."""

from __future__ import annotations

import ast
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from distfs.telemetry import events
from distfs.telemetry.logs import JsonFormatter

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error", "exception")
#: Of these the level is not what the call that logs it says.
NOT_BY_CALL = (
    "node.connection",
    "request.refused",
    "fragment.served",
    "log.dropped",
    "log.missing",
    "up",
    events.OTHER,
)


def logged() -> Iterator[tuple[str, str, str, str]]:
    """-> (where, logger, level, pattern) of each call that logs; a pattern of a variable: each text it is given."""
    for path in sorted((ROOT / "distfs").rglob("*.py")):
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        given: dict[str, list[ast.expr]] = defaultdict(list)
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                given[node.targets[0].id].append(node.value)
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            where, name = f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func)
            owner, _, method = name.rpartition(".")
            if name.endswith("log_facts"):
                pattern, level, owner = node.args[1], "info", ast.unparse(node.args[0])
            elif owner.split(".")[-1].strip("_") not in ("log", "logger", "access_log"):
                continue
            elif method == "log":
                pattern, level = node.args[1], "debug"
            elif method in LEVELS:
                pattern, level = node.args[0], method
            else:
                continue
            made = [v for v in given[owner] if isinstance(v, ast.Call) and "getLogger" in ast.unparse(v.func)]
            logger = str(made[0].args[0].value) if made and isinstance(made[0].args[0], ast.Constant) else ""
            texts = given[pattern.id] if isinstance(pattern, ast.Name) else [pattern]
            texts = [text for text in texts if isinstance(text, ast.Constant)]
            assert texts or (owner == "logger" and path.name == "logs.py"), f"{where}: its pattern is no text"
            for text in texts:
                assert isinstance(text, ast.Constant)
                yield where, logger, level, str(text.value)


def test_each_call_that_logs_has_an_event() -> None:
    calls = list(logged())
    assert len(calls) > 100
    unknown = [call for call in calls if events.find(call[1], call[3])[0] == events.OTHER]
    assert not unknown, "give each an event in distfs/telemetry/events.py"


def test_the_list_has_nothing_that_is_not_logged_and_its_levels_are_true() -> None:
    highest: dict[str, int] = defaultdict(int)
    seen = {("distfs.log", p) for _, p in events.patterns() if p.startswith("%d lines of the log")}
    for _, logger, level, pattern in logged():
        seen.add((logger, pattern))
        event = events.find(logger, pattern)[0]
        highest[event] = max(
            highest[event], logging.getLevelName(level.upper().replace("EXCEPTION", "ERROR"))
        )
    patterns = {p for _, p in seen}
    assert not [p for _, p in events.patterns() if p not in patterns]
    for each in events.EVENTS:
        if each.name not in NOT_BY_CALL:
            assert logging.getLevelName(highest[each.name]) == each.level, each.name


def test_each_value_of_a_pattern_has_a_name() -> None:
    for (_, pattern), (_, names) in events.patterns().items():
        assert events.places(pattern) == len(names), pattern


def test_names_and_patterns_are_there_once() -> None:
    assert len(events.NAMES) == len(events.EVENTS)
    assert len(events.patterns()) == sum(len(event.lines) for event in events.EVENTS)


def test_a_line_of_json_has_its_event_and_its_values_by_name() -> None:
    record = logging.LogRecord(
        "distfs.upkeep",
        logging.WARNING,
        "",
        0,
        "slice %s of file %s is not repaired: %s",
        ("s1", "f1", "no node"),
        None,
    )
    line = json.loads(JsonFormatter().format(record))
    assert {key: line[key] for key in ("event", "slice", "file", "error")} == {
        "event": "slice.unrepaired",
        "slice": "s1",
        "file": "f1",
        "error": "no node",
    }
    assert line["message"] == "slice s1 of file f1 is not repaired: no node"


def test_what_a_library_says_is_an_event_too() -> None:
    record = logging.LogRecord("waitress", logging.WARNING, "", 0, "Task queue depth is %d", (7,), None)
    assert json.loads(JsonFormatter().format(record))["event"] == events.OTHER


def test_the_page_of_events_is_the_list() -> None:
    assert (ROOT / "docs/events.md").read_text() == events.page()
