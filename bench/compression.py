"""What compression brings and costs, kind by kind: stored bytes, MB/s up and down beside what is kept as it is, and
ranges of 64 KiB."""

from __future__ import annotations

import json
import random
import statistics
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from bench import compressible, curl
from bench.capped import capped
from bench.clock import rate
from bench.curl import Content
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, need_room, workspace
from distfs.errors import ConfigError

#: MB/s with ``auto``, of those with ``off`` in the same turn.
GOALS = {("random", "upload"): 0.95, ("random", "download"): 0.95, ("text", "upload"): 1.0}
RANGES_GOAL = 0.8
CAPPED_GOAL = 1.5
CAP = 60_000_000  # bytes a second that the nodes write together
COPIES = 2
RANGES, RANGE = 200, 64 << 10
_CAPPED_MOST = 200_000_000
_MODES = ("off", "auto", "zstd")


@dataclass(slots=True)
class Kind:
    """One kind of bytes: MB/s turn by turn, by way and mode."""

    name: str
    stored: dict[str, float] = field(default_factory=dict)  # of its bytes, by mode
    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, way: str, mode: str, reached: float) -> None:
        self.rates.setdefault(f"{way} {mode}", []).append(reached)

    def ratios(self, way: str, mode: str = "auto") -> list[float]:
        pairs = zip(self.rates[f"{way} {mode}"], self.rates[f"{way} off"], strict=True)
        return [with_it / off for with_it, off in pairs]


def run(options: Options, cleanup: ExitStack) -> list[Kind]:
    """As many turns as ``--runs`` says, after one. Raises Corrupt when a byte differs, GoalMissed."""
    size = options.mb * 10**6
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, size + COPIES * 3 * size * (options.runs + 1) * len(compressible.KINDS))
    distfs = cleanup.enter_context(Distfs.running(folder))
    kinds = [_measure(distfs, folder / "source", name, size, options.runs) for name in compressible.KINDS]
    _print(options, kinds)
    slow = _capped(distfs, folder, min(size, _CAPPED_MOST), options.runs)
    goals = [
        Goal(f"{way} of {kind.name}, of off's", statistics.median(kind.ratios(way)), GOALS[kind.name, way])
        for kind in kinds
        for way in ("upload", "download")
        if (kind.name, way) in GOALS
    ]
    goals += [
        Goal(
            f"ranges of {kind.name}, zstd, of off's",
            statistics.median(kind.ratios("ranges", "zstd")),
            RANGES_GOAL,
        )
        for kind in kinds
    ]
    if slow.rates:
        goals.append(
            Goal("upload of text to a capped disk", statistics.median(slow.ratios("upload")), CAPPED_GOAL)
        )
    judge(goals, [*kinds, slow])
    return [*kinds, slow]


def _capped(distfs: Distfs, folder: Path, size: int, runs: int) -> Kind:
    """Text to nodes whose disk is the slowest part; nothing measured where no limit can be set."""
    kind, source = Kind("text, disk capped"), folder / "source"
    compressible.write_file(source, "text", size)
    nodes = [process.pid for process in distfs.processes() if process.role == "node"]
    try:
        with capped(folder, nodes, CAP):
            for _ in range(runs):
                for mode in _MODES:
                    url = f"{distfs.put_url}?compression={mode}"
                    began = time.perf_counter()
                    answer = curl.put(url, source)
                    kind.add("upload", mode, size / 1e6 / (time.perf_counter() - began))
                    _delete(distfs.download_url(answer))
    except ConfigError as e:
        print(f"  no capped disk: {e}")
        return kind
    print(f"\n{size / 1e6:.0f} MB of text to nodes that may write {CAP / 1e6:.0f} MB/s together, MB/s")
    rates = (spread(kind.rates[f"upload {mode}"], 1) for mode in _MODES)
    ratios = (spread(kind.ratios("upload", mode), 2) for mode in _MODES[1:])
    table([["off", "auto", "zstd", "auto to off", "zstd to off"], [*rates, *ratios]])
    return kind


def _measure(distfs: Distfs, source: Path, name: str, size: int, runs: int) -> Kind:
    kind = Kind(name)
    content = Content(size, compressible.write_file(source, name, size))
    for turn in range(runs + 1):
        for mode in _MODES if turn % 2 else reversed(_MODES):
            began = time.perf_counter()
            uuid = curl.put(f"{distfs.put_url}?compression={mode}", source)
            up = size / 1e6 / (time.perf_counter() - began)
            url = distfs.download_url(uuid)
            if not turn:
                curl.fetch(url, size).expect(content, f"{name}, {mode}")
            else:
                kind.add("upload", mode, up)
                kind.add("download", mode, rate(size, partial(curl.discard, url, size)))
                kind.add("ranges", mode, _ranges(url, size))
            kind.stored[mode] = _stored(url) / size
            _delete(url)
    return kind


def _stored(url: str) -> int:
    with urllib.request.urlopen(url.replace("/download/", "/files/"), timeout=60) as answer:  # noqa: S310 - our own
        return int(json.load(answer)["stored"])


def _delete(url: str) -> None:
    asked = urllib.request.Request(url.replace("/download/", "/files/"), method="DELETE")  # noqa: S310 - our own
    urllib.request.urlopen(asked, timeout=60).close()  # noqa: S310


def _ranges(url: str, size: int) -> float:
    """Ranges a second, one after the other over one connection, anywhere in the file."""
    parts, chance = urlsplit(url), random.Random(size)
    with closing(HTTPConnection(parts.netloc, timeout=60)) as connection:
        began = time.perf_counter()
        for _ in range(RANGES):
            start = chance.randrange(size - RANGE)
            connection.request("GET", parts.path, headers={"Range": f"bytes={start}-{start + RANGE - 1}"})
            assert len(connection.getresponse().read()) == RANGE
        return RANGES / (time.perf_counter() - began)


def _print(options: Options, kinds: Sequence[Kind]) -> None:
    print(f"\nfiles of {options.mb} MB, {options.runs} turns; MB/s, and ranges of 64 KiB a second")
    rows = [["", "way", "off", "auto", "zstd", "auto to off", "zstd to off"]]
    for kind in kinds:
        shares = (f"{kind.stored[mode]:.2f}" for mode in _MODES)
        rows.append([kind.name, "stored", *shares, "", ""])
        for way in ("upload", "download", "ranges"):
            rates = (spread(kind.rates[f"{way} {mode}"], 0) for mode in _MODES)
            ratios = (spread(kind.ratios(way, mode), 2) for mode in _MODES[1:])
            rows.append(["", way, *rates, *ratios])
    table(rows)
