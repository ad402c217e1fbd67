"""What it costs to promise room to an upload before its body is read: two services on one cluster, in turns."""

from __future__ import annotations

import http.client
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from bench import curl, noise, requests
from bench.clock import timed
from bench.report import Options, spread, table
from bench.targets import Distfs, need_room, workspace
from bench.turns import Overhead
from distfs.config.settings import KIB, MIB

SMALL, MIDDLE = 4 * KIB, MIB  # bytes: no row in MetaDB, and the smallest with one
GOAL = 0.03  # of the time, at most


def run(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """A large file as often as ``--runs`` says, small ones in batches: a figure of theirs is the mean of one.

    Raises Unavailable when an upload fails.
    """
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    small = 2 * 5 * options.runs * options.batch * (SMALL + MIDDLE)
    need_room(folder, 2 * (size * (2 * options.runs + 3) + small))
    distfs = cleanup.enter_context(Distfs.running(folder))
    off = cleanup.enter_context(distfs.service("bench.unadmitted"))
    on = cleanup.enter_context(distfs.service("distfs"))
    source = folder / "noise.bin"
    noise.write_file(source, size)
    overheads = [_large(off, on, source, size, options.runs)]
    overheads += [_small(off, on, each, 5 * options.runs, options.batch) for each in (MIDDLE, SMALL)]
    _print(overheads)
    return {"overhead": overheads}


def _large(off: str, on: str, source: Path, size: int, runs: int) -> Overhead:
    def upload(admitted: bool) -> float:
        return timed(lambda: curl.put(f"{on if admitted else off}/upload/noise.bin", source))[1]

    return _overhead(size, runs, upload)


def _small(off: str, on: str, size: int, runs: int, batch: int) -> Overhead:
    body = os.urandom(size)
    return _overhead(size, runs, lambda admitted: _batch(on if admitted else off, body, batch))


def _overhead(size: int, runs: int, upload: Callable[[bool], float]) -> Overhead:
    overhead = Overhead("upload", size)
    for admitted in (False, True):
        upload(admitted)  # whatever comes first is slower
    overhead.measure(runs, upload)
    return overhead


def _batch(url: str, body: bytes, count: int) -> float:
    """Seconds for one upload, over one connection. Raises Unavailable."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
        start = time.perf_counter()
        for _ in range(count):
            requests.ask(connection, "PUT", "/upload/small", body)
        return (time.perf_counter() - start) / count


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
