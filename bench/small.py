"""4 KiB files beside the floor of small files, in turns: what share of this machine's plain Python distfs reaches."""

from __future__ import annotations

import http.client
import random
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench import processes, requests, small_floor, wrk
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, first_line, http_setting, python, reap, set_environment, workspace
from bench.wrk import Load
from distfs.errors import Corrupt
from distfs.metadb.embedded_postgres import EmbeddedPostgres

SIZE = 4096
FILES = 1000  # what GET draws from
MANY = 64  # connections, beside --connections
GET_GOAL, PUT_GOAL = 0.6, 0.65  # of the floor's get and put
MANY_GOAL = 1.0  # with MANY connections, of the rate with --connections
_WARM_UP_S = 1
_PATIENCE_S = 30
_STOP_S = 10.0


class SmallFloor:
    """``bench/small_floor.py``: a service, two storage processes and a PostgreSQL of their own."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._children: list[subprocess.Popen[bytes]] = []
        self.port = self.port_of_two = 0  # of one service process, and of two

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[SmallFloor]:
        """With its data below ``folder``. Raises Unavailable when it does not start."""
        floor = cls(EmbeddedPostgres(folder / "floor-db"))
        try:
            floor._start(folder)
            yield floor
        finally:
            pids = [child.pid for child in floor._children]
            processes.stop(processes.identify({"floor": pids}), _STOP_S)
            for child in floor._children:
                reap(child)
            floor._postgres.stop()

    def _start(self, folder: Path) -> None:
        self._postgres.start()
        sockets = parse_qs(urlsplit(self._postgres.url).query)["host"][0]
        with closing(small_floor.connected_to(sockets)) as database:
            database.run(small_floor.TABLE)
        ports = []
        for number in (1, 2):
            data = folder / f"small-floor-{number}"
            data.mkdir()
            ports.append(self._spawn(folder, "storage", str(data)))
        self.port = self._spawn(folder, "service", sockets, *map(str, ports))
        self.port_of_two = self._spawn(folder, "services", sockets, *map(str, ports))

    def _spawn(self, folder: Path, *arguments: str) -> int:
        child = python(["-m", "bench.small_floor", *arguments], folder, subprocess.PIPE)
        self._children.append(child)
        return int(first_line(child, f"the floor's {arguments[0]} process"))


@dataclass(slots=True)
class Work:
    """One kind of request to one target, and what wrk saw of it, turn by turn."""

    name: str
    url: str
    connections: int
    what: list[str]
    loads: list[Load] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [load.rate for load in self.loads]

    def over(self, other: Work) -> float:
        """Median of the ratios of the two rates, turn by turn."""
        pairs = zip(self.rates, other.rates, strict=True)
        return statistics.median(mine / max(1e-9, theirs) for mine, theirs in pairs)


def run(options: Options, cleanup: ExitStack) -> dict[str, Work]:
    """As many turns as ``--runs`` says. Raises ConfigError without wrk, Corrupt on a wrong byte, GoalMissed."""
    wrk.needed()
    folder = cleanup.enter_context(workspace(options.work))
    floor = cleanup.enter_context(SmallFloor.running(folder))
    (folder / "two").mkdir()
    with set_environment(http_setting("processes", 1)):
        distfs = cleanup.enter_context(Distfs.running(folder))
    with set_environment(http_setting("processes", 2)):
        of_two = cleanup.enter_context(Distfs.running(folder / "two"))
    works = _works(options.connections, folder, floor.port, distfs.port)
    works |= _works_of_two(options.connections, folder, floor.port_of_two, of_two.port)
    for work in works.values():
        wrk.load(work.url, work.connections, _WARM_UP_S, work.what)
    for _ in range(options.runs):
        for work in works.values():
            work.loads.append(wrk.load(work.url, work.connections, options.seconds, work.what))
    _print(options, works)
    judge(_goals(options.connections, works), works)
    return works


def _works(few: int, folder: Path, floor_port: int, distfs_port: int) -> dict[str, Work]:
    """In the order of a turn: what is compared stands side by side."""
    floor, distfs = f"http://127.0.0.1:{floor_port}", f"http://127.0.0.1:{distfs_port}"
    floor_get = listed(folder / "floor-paths", fill(floor_port, "/put", "/{}"))
    distfs_get = listed(folder / "paths", fill(distfs_port, "/upload/x", "/download/{}"))
    put, form = ["put", str(SIZE)], ["form", str(SIZE)]
    works = [
        Work("floor hello", f"{floor}/hello", few, ["hello"]),
        Work("floor get", floor, few, floor_get),
        Work("GET", distfs, few, distfs_get),
        Work("GET", distfs, MANY, distfs_get),
        Work("floor put", f"{floor}/put", few, put),
        Work("PUT raw", f"{distfs}/upload/x", few, put),
        Work("PUT form", f"{distfs}/upload", few, form),
        Work("PUT raw", f"{distfs}/upload/x", MANY, put),
        Work("PUT form", f"{distfs}/upload", MANY, form),
        Work("floor pack", f"{floor}/pack", few, put),
    ]
    return {f"{work.name}, {work.connections} connections": work for work in works}


def _works_of_two(few: int, folder: Path, floor_port: int, distfs_port: int) -> dict[str, Work]:
    """The same with two service processes on a port each. There is no goal for them."""
    floor, distfs = f"http://127.0.0.1:{floor_port}", f"http://127.0.0.1:{distfs_port}"
    floor_get = listed(folder / "floor-paths-of-two", fill(floor_port, "/put", "/{}"))
    distfs_get = listed(folder / "paths-of-two", fill(distfs_port, "/upload/x", "/download/{}"))
    put = ["put", str(SIZE)]
    works = [
        Work("floor get", floor, few, floor_get),
        Work("GET", distfs, few, distfs_get),
        Work("floor put", f"{floor}/put", few, put),
        Work("PUT raw", f"{distfs}/upload/x", few, put),
    ]
    return {f"{work.name}, {work.connections} connections, 2 processes": work for work in works}


def listed(path: Path, paths: list[str]) -> list[str]:
    """-> what wrk is to be told to get them."""
    path.write_text("".join(f"{each}\n" for each in paths))
    return ["get", str(path)]


def fill(port: int, upload: str, download: str, count: int = FILES) -> list[str]:
    """Store files and read each back once -> their paths. wrk itself never looks at a body. Raises Corrupt."""
    source = random.Random(SIZE)
    stored = {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        for _ in range(count):
            content = source.randbytes(SIZE)
            answer = requests.ask(connection, "PUT", upload, content).decode().strip()
            stored[download.format(answer)] = content
        for path, content in stored.items():
            if requests.ask(connection, "GET", path) != content:
                raise Corrupt(f"{path} did not come back as it was sent")
    finally:
        connection.close()
    return list(stored)


def _print(options: Options, works: dict[str, Work]) -> None:
    print(
        f"\nfiles of {SIZE // 1024} KiB, GET at random among {FILES:,}, {options.runs} turns of {options.seconds} s"
    )
    rows = [["", "requests/s", "median ms", "99 % ms", "failed"]]
    for name, work in works.items():
        p50 = statistics.median(load.p50_ms for load in work.loads)
        p99 = statistics.median(load.p99_ms for load in work.loads)
        failed = sum(load.failed for load in work.loads)
        rows.append([name, spread(work.rates, 0), f"{p50:.1f}", f"{p99:.1f}", str(failed)])
    table(rows)
    for name, floor in (("GET", "floor get"), ("PUT raw", "floor put")):
        mine, theirs = (
            works[f"{each}, {options.connections} connections, 2 processes"] for each in (name, floor)
        )
        one = works[f"{name}, {options.connections} connections"]
        print(
            f"{name} with 2 service processes: {mine.over(theirs):.2f} of the floor with 2, "
            f"{mine.over(one):.2f} of itself with 1"
        )


def _goals(few: int, works: dict[str, Work]) -> list[Goal]:
    def of(name: str, connections: int = few) -> Work:
        return works[f"{name}, {connections} connections"]

    first = [
        ("GET", "floor get", GET_GOAL),
        ("PUT raw", "floor put", PUT_GOAL),
        ("PUT form", "floor put", PUT_GOAL),
    ]
    goals = [Goal(f"{name}, of {floor}", of(name).over(of(floor)), goal) for name, floor, goal in first]
    return goals + [
        Goal(f"{name}, {MANY} connections to {few}", of(name, MANY).over(of(name)), MANY_GOAL)
        for name, _, _ in first
    ]
