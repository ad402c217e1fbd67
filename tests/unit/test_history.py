"""The last hour in rows: what grew since the row before, and what is so now."""

from __future__ import annotations

import pytest

from distfs.telemetry import metrics
from distfs.telemetry.history import COLUMNS, EVERY_S, ROWS, History


@pytest.fixture(autouse=True)
def fresh() -> None:
    metrics.share(2)


def rows(history: History) -> list[dict[str, object]]:
    told = history.as_json()
    assert told["columns"] == list(COLUMNS)
    return [dict(zip(COLUMNS, row, strict=True)) for row in told["rows"]]


def test_a_row_has_what_all_processes_did_since_the_row_before() -> None:
    history = History(lambda watched: (3, {"1": 7}))
    metrics.answered("/upload", "POST", 201, 1000, 37, 0.1)
    metrics.mine(1)  # as another process
    metrics.IN_FLIGHT.add(3)
    metrics.answered("/download/<uuid>", "GET", 503, 0, 500, 0.1)
    metrics.mine(0)
    metrics.IN_FLIGHT.add(1)
    history.add()
    history.add()
    first, second = rows(history)
    assert first.pop("time")
    assert first == {
        "requests": 2,
        "errors": 1,
        "received": 1000,
        "sent": 537,
        "in_flight": 2,
        "nodes_up": 3,
        "slices": {"1": 7},
    }
    assert [second[name] for name in ("requests", "errors", "received", "sent")] == [0, 0, 0, 0]


def test_it_keeps_an_hour_and_no_more() -> None:
    history = History(lambda watched: (None, None))
    for _ in range(ROWS + 5):
        history.add()
    assert len(rows(history)) * EVERY_S == 3600
