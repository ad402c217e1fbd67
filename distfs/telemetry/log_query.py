"""What somebody asks of the log, in words; and the answers of many sources as one."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from distfs.config.file import parse_seconds
from distfs.telemetry import events
from distfs.telemetry.log_search import Line, Wanted, as_in_lines

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
#: What may be asked for, as flags of `distfs logs` and arguments of GET /logs.
NAMES = tuple(field.name for field in fields(Wanted))
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Where a process's own log is."""

    folder: Path
    part: str  # what its files are called


def asked(words: Mapping[str, str]) -> Wanted:
    """By name. Raises ValueError for what cannot be meant, and says what can."""
    if unknown := sorted(words.keys() - set(NAMES)):
        raise ValueError(f"{unknown[0][:60]!r} is nothing that a log is asked for: {', '.join(NAMES)}")
    if too_long := [name for name, value in words.items() if len(value) > _LONGEST]:
        raise ValueError(f"{too_long[0]} must have at most {_LONGEST} characters")
    event, level = words.get("event", ""), words.get("level", "").upper()
    if event and event not in events.NAMES:
        raise ValueError(f"there is no event {event}; known: {', '.join(sorted(events.NAMES))}")
    if level and level not in LEVELS:
        raise ValueError(f"there is no level {level}; known: {', '.join(LEVELS)}")
    times = {
        name: as_in_lines(max(0.0, moment(words[name]))) for name in ("since", "until") if words.get(name)
    }
    return Wanted(**{**words, "level": level, "trace": words.get("trace", "").lower(), **times})


def moment(text: str) -> float:
    """A time of day, or a while ago. Raises ValueError."""
    try:
        return time.time() - parse_seconds(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write 10min, for so long ago, or 2025-01-31T12:00:00Z"
        ) from None


def merged(sources: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """Their lines in order of time, each as often as the source has it that has it most often: parts that share a
    folder have each other's lines."""
    numbered = [_numbered(number, source) for number, source in enumerate(sources)]
    in_order = heapq.merge(*numbered, key=lambda each: each[1][0])
    for _, of_one_time in groupby(in_order, key=lambda each: each[1][0]):
        told = Counter[bytes]()
        here = Counter[tuple[int, bytes]]()
        for number, line in of_one_time:
            here[number, line[1]] += 1
            if here[number, line[1]] > told[line[1]]:
                told[line[1]] += 1
                yield line


def _numbered(number: int, source: Iterable[Line]) -> Iterator[tuple[int, Line]]:
    for line in source:
        yield number, line
