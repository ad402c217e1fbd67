"""What it costs a service to look at the clock wherever it waits: two services on one cluster, in turns."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

from bench import curl, noise
from bench.clock import timed
from bench.report import Options, spread, table
from bench.targets import Distfs, need_room, workspace
from bench.turns import Overhead

GOAL = 0.03  # of the time, at most


def run(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """A large file, up and down, twice by each of as many pairs of services as ``--runs`` says.

    Two processes that run the same code differ by some per cent for as long as they live: so there are many.
    """
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    need_room(folder, size * (1 + 2 * 6 * options.runs))
    distfs = cleanup.enter_context(Distfs.running(folder))
    source = folder / "noise.bin"
    noise.write_file(source, size)
    overheads = [Overhead("upload", size), Overhead("download", size)]
    for number in range(options.runs):
        with ExitStack() as pair:
            modules = ["distfs", "bench.unbounded"] if number % 2 else ["bench.unbounded", "distfs"]
            urls = {module: pair.enter_context(distfs.service(module)) for module in modules}
            _measure(overheads, urls["bench.unbounded"], urls["distfs"], source)
    _print(overheads)
    return {"overhead": overheads}


def _measure(overheads: list[Overhead], off: str, on: str, source: Path) -> None:
    uuid = ""

    def upload(bounded: bool) -> float:
        nonlocal uuid
        uuid, seconds = timed(lambda: curl.put(f"{on if bounded else off}/upload/noise.bin", source))
        return seconds

    def download(bounded: bool) -> float:
        url = f"{on if bounded else off}/download/{uuid}"
        return timed(lambda: curl.discard(url, overheads[1].size))[1]

    for overhead, transfer in zip(overheads, (upload, download), strict=True):
        for bounded in (False, True):
            transfer(bounded)  # whatever comes first is slower
        overhead.measure(2, transfer)


def _print(overheads: list[Overhead]) -> None:
    pairs = len(overheads[0].off_s)
    print(f"\ndeadlines, {overheads[0].size / 1e6:.0f} MB, {pairs} pairs in turns: median (min to max)")
    rows = [["", "without, s", "with, s", "time ratio, pair by pair", f"goal below {GOAL:.0%}"]]
    for each in overheads:
        verdict = "met" if statistics.median(each.ratios) < 1 + GOAL else "missed"
        rows.append([each.way, spread(each.off_s, 2), spread(each.on_s, 2), spread(each.ratios, 3), verdict])
    table(rows)
