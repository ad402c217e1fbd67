"""A file that no page cache has, on a disk that reads 128 KiB ahead as most do: beside a ``dd`` of its fragments."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import curl, noise
from bench.clock import rate
from bench.curl import Content
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, need_room, workspace
from distfs.errors import Unavailable

READ_AHEAD_KB = 128
GOAL = 0.95  # of dd's MB/s
COPIES = 2


@dataclass(slots=True)
class Cold:
    """MB/s, turn by turn. ``read_ahead_kb``: how far the disk read ahead."""

    read_ahead_kb: int
    dd: list[float] = field(default_factory=list)
    download: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.download, self.dd, strict=True)]


def run(options: Options, cleanup: ExitStack) -> Cold:
    """As many turns as ``--runs`` says, after one. Raises Corrupt when a byte differs, GoalMissed."""
    size = options.mb * 10**6
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, size * (1 + COPIES))
    source = folder / "noise.bin"
    content = Content(size, noise.write_file(source, size))
    distfs = cleanup.enter_context(Distfs.running(folder))
    url = distfs.download_url(curl.put(distfs.put_url, source))
    fragments = [path for path in (distfs.data).glob("node*/data/*/*/*") if path.is_file()]
    copy = sorted(path for path in fragments if path.suffix == ".0")  # one of the two, slice by slice
    found = Cold(cleanup.enter_context(_reading_ahead(folder, READ_AHEAD_KB)))
    for turn in range(options.runs + 1):
        forget(fragments)
        plain = rate(sum(path.stat().st_size for path in copy), lambda: _dd(copy))
        forget(fragments)
        if not turn:  # the first one is checked
            curl.fetch(url, size).expect(content, "what no page cache had")
            continue
        found.dd.append(plain)
        found.download.append(rate(size, lambda: curl.discard(url, size)))
    _print(found, size)
    judge([Goal("cold download, of dd", statistics.median(found.ratios), GOAL)], found)
    return found


def forget(files: Sequence[Path]) -> None:
    """The page cache has nothing of them: they are durable, so all of it may go."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _dd(files: Sequence[Path]) -> None:
    for path in files:
        done = subprocess.run(
            ["dd", f"if={path}", "of=/dev/null", "bs=1M"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"dd failed: {done.stderr.strip()}")


@contextmanager
def _reading_ahead(folder: Path, kb: int) -> Iterator[int]:
    """The folder's disk reads so far ahead within, if we may say so; -> how far it does."""
    setting = _setting(folder)
    if setting is None:
        print("  how far this disk reads ahead is not known: it is no block device")
        yield -1
        return
    before = int(setting.read_text())
    try:
        setting.write_text(f"{kb}\n")
    except OSError as e:
        print(f"  {setting} stays at {before}: {e.strerror}; as root it would be {kb} for this run")
        yield before
        return
    try:
        yield kb
    finally:
        setting.write_text(f"{before}\n")


def _setting(folder: Path) -> Path | None:
    """A partition's is that of its disk."""
    device = folder.stat().st_dev
    found = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    places = (found / "queue" / "read_ahead_kb", found.resolve().parent / "queue" / "read_ahead_kb")
    return next((place for place in places if place.exists()), None)


def _print(found: Cold, size: int) -> None:
    print(f"\n{size / 1e6:.0f} MB that no page cache has, read ahead {found.read_ahead_kb} KiB")
    rows = [["", "MB/s", "of dd, turn by turn"], ["dd of one copy's files", spread(found.dd, 0), ""]]
    table([*rows, ["download", spread(found.download, 0), spread(found.ratios, 2)]])
