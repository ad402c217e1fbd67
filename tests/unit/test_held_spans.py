"""Spans that wait for whether somebody wants them."""

from __future__ import annotations

from collections.abc import Sequence

from distfs.telemetry import held_spans
from distfs.telemetry.held_spans import Held


def holding() -> tuple[Held[str], list[str]]:
    sent: list[str] = []

    def send(spans: Sequence[str]) -> None:
        sent.extend(spans)

    return Held(send), sent


def test_what_is_wanted_is_sent_once_also_what_comes_later() -> None:
    held, sent = holding()
    held.add(1, 1, lambda: ["a"])
    held.add(2, 1, lambda: ["b"])
    held.add(1, 1, lambda: ["c"])
    assert sent == []
    held.want([1, 9])
    held.want([1])
    assert sent == ["a", "c"]
    held.add(1, 1, lambda: ["late"])
    assert sent == ["a", "c", "late"]


def test_the_oldest_go_first_and_all_is_bounded() -> None:
    held, sent = holding()
    for trace in range(held_spans.MOST_SPANS + 10):
        held.add(trace, 1, lambda trace=trace: [str(trace)])  # type: ignore[misc]
    held.want([9])
    assert sent == []
    held.want([10])
    assert sent == ["10"]
    held.want(range(100_000, 100_000 + held_spans.MOST_WANTED))
    held.add(10, 1, lambda: ["forgotten"])
    assert sent == ["10"], "it was wanted too long ago"
    held.add(200_000, 2 * held_spans.MOST_SPANS, lambda: ["too many"])
    held.want([200_000])
    assert sent == ["10"]
