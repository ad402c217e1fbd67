"""What codes cost beside copies, how fast a lost node is made anew, and what upkeep costs when there is none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import curl, disk, noise, processes
from bench.clock import rate, timed
from bench.curl import Content
from bench.processes import Process
from bench.report import Goal, Options, judge, spread, table
from bench.targets import need_room, workspace
from distfs.alerting.worker import Alerts
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import TooSlow
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.upkeep.copies import Copies
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.orphans import Orphans
from distfs.upkeep.rebalance import Rebalance
from distfs.upkeep.repair import Repair
from distfs.upkeep.scrub import Scrub
from distfs.upkeep.trash import Trash
from tests.cluster.harness import Cluster, Settings

CODE_NODES, REPAIR_NODES = 6, 3
#: Of 1+1's MB/s in the same turn. Up, 4+2 writes 1.5 bytes a byte and 1+1 two.
GOALS = {"upload 4+2": 1.0, "download 4+2": 0.80, "download 4+2, two nodes down": 0.60}
_BASE = {"upload 4+2": "upload 1+1"}
IDLE_GOAL = 0.01  # of one core
_IDLE_FILES = 100
_POLL_S = 0.05
_LIMIT_S = 600.0


@dataclass(slots=True)
class Way:
    """One kind of transfer: MB/s, turn by turn."""

    name: str
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # to 1+1's in the same turn; empty for 1+1 itself


@dataclass(frozen=True, slots=True)
class Repaired:
    """One lost node made anew, as fast as it goes."""

    bytes: int
    seconds: float
    disk_rates: tuple[float, ...]  # bytes a second of plain sequential writes, before and after

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds


@contextmanager
def cluster_of(folder: Path, nodes: int, config: Settings) -> Iterator[Cluster]:
    """Real processes with nothing but the default settings and ``config``; nobody starts a killed one again."""
    server = EmbeddedPostgres(folder / "metadb")
    server.start()
    try:
        meta = MetaDB(MetaDBConfig(url=server.url))
        meta.migrate()
        meta.close()
        with Cluster(folder / "cluster", server.url, nodes, config) as cluster:
            yield cluster
    finally:
        server.stop()


def everything(folder: Path, cluster: Cluster) -> list[Process]:
    """The cluster's processes, PostgreSQL's included."""
    pid_file = folder / "metadb" / "postgres" / "postmaster.pid"
    return processes.identify(
        {
            "service": [cluster.service.pid],
            "node": [node.pid for node in cluster.nodes if node.alive],
            "PostgreSQL": processes.descendants(int(pid_file.read_text().split()[0])),
        }
    )


# --- codes -------------------------------------------------------------------------------------------------


def run_codes(options: Options, cleanup: ExitStack) -> list[Way]:
    """1+1 and 4+2 in turns on the same six nodes. Raises Corrupt when a byte differs, GoalMissed."""
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    need_room(folder, int(size * (1 + 3.5 * (options.runs + 1))))
    source = folder / "noise.bin"
    content = Content(size, noise.write_file(source, size))
    config: Settings = {"storage": {"policies": {"default": "1+1", "archive": "4+2"}}}
    ways = {name: Way(name) for name in ("upload 1+1", "upload 4+2", "download 1+1", *list(GOALS)[1:])}
    with cluster_of(
        folder, CODE_NODES, config
    ) as cluster:  # over before goals are: an error here shows its logs
        for turn in range(options.runs + 1):
            for name, reached in _turn(cluster, source, content, turn):
                if turn:  # the first one warms up
                    ways[name].rates.append(reached)
    for way in ways.values():
        if way.name in GOALS:
            base = ways[_BASE.get(way.name, "download 1+1")]
            way.ratios = [mine / other for mine, other in zip(way.rates, base.rates, strict=True)]
    found = list(ways.values())
    _print_codes(found, size)
    goals = [
        Goal(f"{name}, of 1+1", statistics.median(ways[name].ratios), goal) for name, goal in GOALS.items()
    ]
    judge(goals, found)
    return found


def _turn(cluster: Cluster, source: Path, content: Content, turn: int) -> Iterator[tuple[str, float]]:
    """Each way once; -> its name and MB/s."""
    uuids = {}
    for policy, query in (("1+1", ""), ("4+2", "?policy=archive")):
        url = f"{cluster.url}/upload/noise.bin{query}"
        uuids[policy], seconds = timed(partial(curl.put, url, source))
        yield f"upload {policy}", content.size / 1e6 / seconds
    urls = {policy: f"{cluster.url}/download/{uuid}" for policy, uuid in uuids.items()}
    for url in urls.values():
        curl.fetch(url, content.size).expect(content, url)
    for policy, url in urls.items():
        yield f"download {policy}", rate(content.size, partial(curl.discard, url, content.size))
    lost = [(2 * turn + i) % CODE_NODES for i in (0, 1)]
    for i in lost:
        cluster.kill_node(i)
    curl.fetch(urls["4+2"], content.size).expect(content, "with two nodes down")
    crippled = rate(content.size, lambda: curl.discard(urls["4+2"], content.size))
    yield "download 4+2, two nodes down", crippled
    for i in lost:
        cluster.start_node(i)


def _print_codes(ways: Sequence[Way], size: int) -> None:
    turns = len(ways[0].rates)
    print(
        f"\n4+2 beside 1+1 over {CODE_NODES} nodes, {size / 1e6:.0f} MB, {turns} turns: median (min to max)"
    )
    rows = ([way.name, spread(way.rates, 0), spread(way.ratios, 2) if way.ratios else ""] for way in ways)
    table([["", "MB/s", "of 1+1, turn by turn"], *rows])
    print("  every file came back byte for byte, with two nodes down, too")


# --- repair and idle upkeep --------------------------------------------------------------------------------


def run_repair(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """A node with ``options.repair_mb`` is lost and made anew; then upkeep with nothing to do."""
    folder = cleanup.enter_context(workspace(options.work))
    size = options.repair_mb * 10**6 * REPAIR_NODES // 2
    need_room(folder, 4 * size)
    with ExitStack() as one:
        repaired = _repair(folder, size, one)
    print(
        f"\na lost node with {repaired.bytes / 1e6:.0f} MB of two copies: {repaired.seconds:.1f} s, "
        f"{repaired.rate / 1e6:.0f} MB/s; the disk's own sequential writes: "
        f"{spread([rate / 1e6 for rate in repaired.disk_rates], 0)} MB/s"
    )
    idle = _idle(folder, options.idle_s)
    _print_idle(idle, options.idle_s)
    return {"repair": repaired, "idle": idle}


def _repair(folder: Path, size: int, cleanup: ExitStack) -> Repaired:
    before = disk.sequential_write(folder, min(size, 10**9))
    config: Settings = {
        "node": {"heartbeat": "500ms", "down_after": "2s"},
        "upkeep": {"interval": "100ms", "repair_rate": 0, "scrub_rate": "1MiB/s"},
    }
    cluster = cleanup.enter_context(cluster_of(folder, REPAIR_NODES, config))
    uuid, content = curl.put_stream(f"{cluster.url}/upload/noise.bin", size)
    kept = [sum(path.stat().st_size for path in cluster.fragments(i)) for i in range(REPAIR_NODES)]
    # One that keeps nothing would tell nothing, and a small file may leave one out.
    lost = kept.index(max(kept))
    cluster.kill_node(lost)
    _wait(lambda: not cluster.node(lost).alive, "the lost node is noticed")
    db = UpkeepDB(cluster.meta)
    began = time.perf_counter()
    db.give_up_silent_nodes(Deadline(30))
    _wait(lambda: not db.backlog(600.0, Deadline(30)).slices, "the lost node is made anew")
    seconds = time.perf_counter() - began
    cluster.kill_node((lost + 1) % REPAIR_NODES)
    curl.fetch(f"{cluster.url}/download/{uuid}", size).expect(content, "after two losses, one repaired")
    return Repaired(kept[lost], seconds, (before, disk.sequential_write(folder, min(size, 10**9))))


def _idle(folder: Path, seconds: float) -> dict[str, Mapping[str, float]]:
    """Share of one core by role, with upkeep that found nothing to do and with none."""
    shares: dict[str, Mapping[str, float]] = {}
    base = folder / "idle"
    base.mkdir()
    base.chmod(0o755)
    with cluster_of(base, REPAIR_NODES, {}) as cluster:
        for _ in range(_IDLE_FILES):
            cluster.upload(b"small")
        for title, enabled in (("with upkeep", "true"), ("without", "false")):
            cluster.stop_service()
            cluster.settings["upkeep"] = {"enabled": enabled}
            cluster.write_settings()
            cluster.start_service()
            if enabled == "true":
                _wait(lambda: _all_idle(cluster), "upkeep has nothing to do")
            before = processes.cpu_seconds(everything(base, cluster))
            time.sleep(seconds)
            after = processes.cpu_seconds(everything(base, cluster))
            shares[title] = {role: (used - before.get(role, 0.0)) / seconds for role, used in after.items()}
    return shares


#: Those of upkeep, and those that run beside them.
_WORKERS = {each.name for each in (Repair, Scrub, Orphans, Trash, Rebalance, Alerts, Copies)}


def _all_idle(cluster: Cluster) -> bool:
    workers = UpkeepDB(cluster.meta).workers(Deadline(30))
    return {worker.name for worker in workers} >= _WORKERS and all(
        worker.state == "idle" for worker in workers
    )


def _print_idle(shares: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    print(f"\nCPU of one core over {seconds:.0f} s with nothing to do")
    roles = list(shares["with upkeep"])
    rows = [["", *roles, "all"]]
    for title, by_role in shares.items():
        figures = [by_role.get(role, 0.0) for role in roles]
        rows.append([title, *(f"{figure:.2%}" for figure in (*figures, sum(figures)))])
    table(rows)
    cost = sum(shares["with upkeep"].values()) - sum(shares["without"].values())
    verdict = "met" if cost < IDLE_GOAL else "missed"
    print(f"  upkeep itself: {cost:.2%}; goal < {IDLE_GOAL:.0%}: {verdict}")


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise TooSlow(f"waited {_LIMIT_S:.0f} s in vain until {what}")
        time.sleep(_POLL_S)
