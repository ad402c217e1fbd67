"""Files of 1 MiB, 16 at a time, beside one large file: both ways in MB/s, in turns, with curl for both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench import curl, noise
from bench.clock import rate
from bench.curl import Content
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, need_room, workspace

SIZE = 1 << 20
CONNECTIONS = 16
GOAL = 0.8  # of the large file's MB/s
COPIES = 2


@dataclass(slots=True)
class Way:
    """One direction: MB/s turn by turn."""

    name: str
    large: list[float] = field(default_factory=list)
    medium: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [medium / large for medium, large in zip(self.medium, self.large, strict=True)]


def run(options: Options, cleanup: ExitStack) -> dict[str, Way]:
    """As many turns as ``--runs`` says, after one. Raises Corrupt when a byte differs, GoalMissed."""
    size = options.mb * 10**6
    count = max(CONNECTIONS, size // SIZE)
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, size + COPIES * (size + count * SIZE) * (options.runs + 1))
    large, medium = folder / "large.bin", folder / "medium.bin"
    contents = [
        Content(length, noise.write_file(path, length)) for path, length in ((large, size), (medium, SIZE))
    ]
    distfs = cleanup.enter_context(Distfs.running(folder))
    stored = curl.put(distfs.put_url, large)
    many = curl.put_many(distfs.put_url, medium, count, CONNECTIONS)
    for uuid, content in ((stored, contents[0]), (many[0], contents[1]), (many[-1], contents[1])):
        curl.fetch(distfs.download_url(uuid), content.size).expect(content, f"distfs file {uuid}")
    urls = [distfs.download_url(uuid) for uuid in many]
    curl.discard_many(urls, SIZE, CONNECTIONS)
    down, up = Way("download"), Way("upload")
    for _ in range(options.runs):
        down.large.append(rate(size, lambda: curl.discard(distfs.download_url(stored), size)))
        down.medium.append(rate(count * SIZE, lambda: curl.discard_many(urls, SIZE, CONNECTIONS)))
        up.large.append(rate(size, lambda: curl.put(distfs.put_url, large)))
        up.medium.append(
            rate(count * SIZE, lambda: curl.put_many(distfs.put_url, medium, count, CONNECTIONS))
        )
    ways = [down, up]
    _print(options, count, ways)
    found = {way.name: way for way in ways}
    judge(
        [Goal(f"{way.name}, of the large file's", statistics.median(way.ratios), GOAL) for way in ways], found
    )
    return found


def _print(options: Options, count: int, ways: Sequence[Way]) -> None:
    print(
        f"\n{count} files of 1 MiB, {CONNECTIONS} at a time, beside one of {options.mb} MB, {options.runs} turns"
    )
    headings = ["MB/s", "one large", "1 MiB", "ratio, turn by turn"]
    rows = ([way.name, spread(way.large, 0), spread(way.medium, 0), spread(way.ratios, 2)] for way in ways)
    table([headings, *rows])
