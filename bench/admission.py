"""What it costs to promise room to an upload before its body is read: two services on one cluster, in turns."""

from __future__ import annotations

import http.client
import os
import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench import curl, noise
from bench.report import Options, spread, table
from bench.targets import Distfs, need_room, workspace
from distfs.config import KIB, MIB
from distfs.errors import Unavailable

SMALL, MIDDLE = 4 * KIB, MIB  # bytes: no row in MetaDB, and the smallest with one
BATCH = 50  # uploads of them in a row; a figure is the mean of a batch
GOAL = 0.03  # of the time, at most


@dataclass(slots=True)
class Overhead:
    """Uploads of one size, without admission and with, in turns."""

    size: int
    off_s: list[float] = field(default_factory=list)
    on_s: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Time with admission to time without, pair by pair."""
        return [on / off for on, off in zip(self.on_s, self.off_s, strict=True)]


def run(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """A large file as often as ``--runs`` says, small ones in batches. Raises Unavailable when an upload fails."""
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    small = 2 * 5 * options.runs * BATCH * (SMALL + MIDDLE)
    need_room(folder, 2 * (size * (2 * options.runs + 3) + small))
    distfs = cleanup.enter_context(Distfs.running(folder))
    off = cleanup.enter_context(distfs.service("bench.unadmitted"))
    on = cleanup.enter_context(distfs.service("distfs"))
    source = folder / "noise.bin"
    noise.write_file(source, size)
    overheads = [_large(off, on, source, size, options.runs)]
    overheads += [_small(off, on, each, 5 * options.runs) for each in (MIDDLE, SMALL)]
    _print(overheads)
    return {"overhead": overheads}


def _large(off: str, on: str, source: Path, size: int, runs: int) -> Overhead:
    overhead = Overhead(size)
    for url in (off, on):
        curl.put(f"{url}/upload/noise.bin", source)
    for number in range(runs):
        for url in _in_turns(off, on, number):
            start = time.perf_counter()
            curl.put(f"{url}/upload/noise.bin", source)
            (overhead.on_s if url == on else overhead.off_s).append(time.perf_counter() - start)
    return overhead


def _small(off: str, on: str, size: int, runs: int) -> Overhead:
    overhead = Overhead(size)
    body = os.urandom(size)
    for url in (off, on):
        _batch(url, body)
    for number in range(runs):
        for url in _in_turns(off, on, number):
            (overhead.on_s if url == on else overhead.off_s).append(_batch(url, body))
    return overhead


def _in_turns(off: str, on: str, number: int) -> tuple[str, str]:
    """Which goes first alternates: what the one leaves to the other's disk is shared out."""
    return (off, on) if number % 2 else (on, off)


def _batch(url: str, body: bytes) -> float:
    """Seconds for one upload, over one connection. Raises Unavailable."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        start = time.perf_counter()
        for _ in range(BATCH):
            connection.request("PUT", "/upload/small", body)
            answer = connection.getresponse()
            words = answer.read().decode(errors="replace")
            if answer.status != http.HTTPStatus.CREATED:
                raise Unavailable(f"an upload was answered with {answer.status}: {words}")
        return (time.perf_counter() - start) / BATCH


def _print(overheads: list[Overhead]) -> None:
    print(f"\nadmission, in turns: median (min to max) of {len(overheads[0].off_s)} pairs; small: more")
    rows = [["", "without, ms", "with, ms", "time ratio, pair by pair"]]
    for each in overheads:
        off, on = ([s * 1000 for s in seconds] for seconds in (each.off_s, each.on_s))
        rows.append([_words(each.size), spread(off, 2), spread(on, 2), spread(each.ratios, 3)])
    table(rows)
    ratio = statistics.median(overheads[0].ratios)
    verdict = "met" if ratio < 1 + GOAL else "missed"
    print(f"  {_words(overheads[0].size)}: {ratio - 1:+.2%} (goal below {GOAL:.0%}: {verdict})")


def _words(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size > MIB else f"{size // KIB} KiB"
