"""Random walks over a small cluster of real processes: ``python -m tests.faults.walk --seconds 600``.

A walk uploads and deletes files, kills and starts nodes and the service, damages fragments, drains, and leaves
orphans, never with more losses at a time than its policy survives. After each walk every acknowledged file is
read back byte for byte, every fragment is whole again, no live one was taken away, and no orphan is left.

A walk is known by its seed. One that fails prints it and its steps; ``--replay FILE`` takes those steps again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from uuid import UUID

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.model import Policy
from distfs.upkeep.db import UpkeepDB
from tests.cluster.harness import Cluster, Settings
from tests.cluster.healing import (
    Place,
    health,
    is_sound,
    kept,
    noise,
    on_disk,
    settings,
    wait_no_surplus,
    wait_whole,
)
from tests.contract.litter import eventually
from tests.postgres import FAST, database_url, run_sql, scratch_folder

#: Nodes that a cluster begins with, and how many it may come to have.
_SPARE, _MOST_MORE = 2, 2
_MOST_BYTES = 700_000
_PATIENCE_S = 90.0
#: Enough nodes are there, so no upload may be refused for longer.
_REFUSED_S = 15.0
_MISSING = re.compile(r"fragment (\S+) on node \d+: missing")
_TAKEN_AWAY = "was in quarantine and is wanted"

#: Ages so short that sweeps and the trash have their turn within a walk; longer than any upload here takes.
AGES = {
    "repair_delay": "1s",
    "scrub_period": "1s",
    "upload_ttl": "3s",
    "sweep_margin": "500ms",
    "sweep_interval": "500ms",
    "quarantine_ttl": "500ms",
    "trash_ttl": "500ms",
}


class WalkFailed(AssertionError):
    """What went wrong, the seed, and the steps to it."""


@dataclass(frozen=True, slots=True)
class Step:
    """``kill 2``: what is done, and to what. Numbers that are too large count round."""

    kind: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.kind, *map(str, self.numbers)])

    @classmethod
    def parse(cls, line: str) -> Step:
        """Raises ValueError."""
        kind, *numbers = line.split()
        return cls(kind, tuple(map(int, numbers)))


def walk_settings(policy: Policy) -> Settings:
    """For the cluster of a walk."""
    return settings(str(policy), upkeep=AGES, log={"level": "INFO"})


def nodes_for(policy: Policy) -> int:
    """How many nodes a walk begins with."""
    return policy.k + policy.m + _SPARE


class Walk:
    """One walk over one cluster. ``steps``: those taken so far."""

    def __init__(self, cluster: Cluster, policy: Policy, random: Random) -> None:
        self._cluster, self._policy, self._random = cluster, policy, random
        self._db = UpkeepDB(cluster.meta)
        self.steps: list[Step] = []
        self.files: dict[str, tuple[int, int]] = {}  # acknowledged: uuid -> size, seed
        self.done: Counter[str] = Counter()  # by kind: steps that changed something
        self.refused = 0
        self._deleted: set[str] = set()
        self._draining: set[int] = set()
        self._numbers: dict[int, int] = {}  # of nodes, by what MetaDB calls them
        self._losses = 0  # since everything was whole, at most
        self._damaged: set[str] = set()  # names of fragments that this walk damaged
        self._kinds: Mapping[str, Callable[..., bool]] = {
            "upload": self._upload,
            "delete": self._delete,
            "kill": self._kill,
            "start": self._start,
            "new": self._new,
            "corrupt": self._corrupt,
            "drain": self._drain,
            "undrain": self._undrain,
            "orphan": self._orphan,
            "service": self._service,
            "heal": self._heal,
        }

    # --- choosing -----------------------------------------------------------------------------------------

    def choose(self) -> Step:
        """Something that can be done now."""
        number = self._random.randrange
        alive, dead = self._alive(), sorted(set(range(len(self._cluster.nodes))) - self._alive())
        may_lose = self._losses < self._policy.m
        spare = len(alive - self._draining) > self._policy.k + self._policy.m
        room = len(self._cluster.nodes) < nodes_for(self._policy) + _MOST_MORE
        choices: list[tuple[float, Step]] = [
            (6, Step("upload", (number(_MOST_BYTES), number(1 << 30)))),
            (2, Step("delete", (number(1000),))),
            (4 * may_lose, Step("corrupt", (number(1 << 30), number(4), number(1 << 30)))),
            (1, Step("orphan", (number(1 << 30), number(1 << 30)))),
            (0.7, Step("service")),
            (3 * (not may_lose), Step("heal")),
            (0.5 * room, Step("new")),
        ]
        if spare:
            victim = self._random.choice(sorted(alive))
            choices.append((3 * may_lose, Step("kill", (victim,))))
            choices.append((1, Step("drain", (self._random.choice(sorted(alive)),))))
        choices += [(2, Step("start", (i,))) for i in dead]
        choices += [(1, Step("undrain", (i,))) for i in sorted(self._draining)]
        return self._random.choices([step for _, step in choices], [weight for weight, _ in choices])[0]

    def take(self, step: Step) -> None:
        """Do one step; one that cannot be done now does nothing, and does not count as ``done``."""
        self.steps.append(step)
        if self._kinds[step.kind](*step.numbers):
            self.done[step.kind] += 1

    def _alive(self) -> set[int]:
        return {i for i, process in enumerate(self._cluster.nodes) if process.alive}

    # --- steps ----------------------------------------------------------------------------------------------

    def _upload(self, size: int, seed: int) -> bool:
        give_up = time.monotonic() + _REFUSED_S
        while True:  # nodes that were just lost, or have just come, are not known to be so yet
            answer = self._cluster.request("PUT", "/upload/walk", noise(size, seed))
            if answer.status != 503 or time.monotonic() > give_up:
                break
            self.refused += 1
            time.sleep(0.1)
        assert answer.status == 201, f"{answer.status} {answer.text}"
        uuid = answer.text.strip()
        self.files[uuid] = size, seed
        self._losses = max(self._losses, self._policy.m - health(self._cluster, uuid)["redundancy_left"])
        return True

    def _delete(self, number: int) -> bool:
        if not self.files:
            return False
        uuid = sorted(self.files)[number % len(self.files)]
        answer = self._cluster.request("DELETE", f"/files/{uuid}")
        assert answer.status == 204, f"{answer.status} {answer.text}"
        del self.files[uuid]
        self._deleted.add(uuid)
        return True

    def _kill(self, i: int) -> bool:
        enough = len(self._alive() - self._draining - {i}) >= self._policy.k + self._policy.m
        if i not in self._alive() or self._losses >= self._policy.m or not enough:
            return False
        self._losses += 1
        self._cluster.kill_node(i)
        return True

    def _start(self, i: int) -> bool:
        if self._cluster.nodes[i].alive:
            return False
        self._cluster.start_node(i)
        return True

    def _new(self) -> bool:
        self._cluster.add_node()
        return True

    def _corrupt(self, number: int, way: int, at: int) -> bool:
        """One fragment that somebody needs: a bit flipped, cut short, emptied or removed."""
        there = sorted(kept(self._cluster) & on_disk(self._cluster, aside=False))
        if not there or self._losses >= self._policy.m:
            return False
        self._losses += 1
        place = there[number % len(there)]
        self._damaged.add(place[1])
        try:
            damage(self._path(place), way, at)
        except FileNotFoundError:  # moved this very moment
            return False
        return True

    def _drain(self, i: int) -> bool:
        active = self._alive() - self._draining
        if i not in active or len(active) <= self._policy.k + self._policy.m:
            return False
        self._db.set_node_state(self._cluster.node(i).id, "draining", Deadline(30))
        self._draining.add(i)
        return True

    def _undrain(self, i: int) -> bool:
        if i not in self._draining:
            return False
        self._db.set_node_state(self._cluster.node(i).id, "active", Deadline(30))
        self._draining.discard(i)
        return True

    def _orphan(self, number: int, name: int) -> bool:
        """A whole fragment of a slice that nobody knows, as a killed upload leaves it."""
        there = sorted(on_disk(self._cluster, aside=False))
        if not there:
            return False
        node, known = there[number % len(there)]
        fresh = str(UUID(int=name << 64, version=4))
        try:
            content = self._path((node, known)).read_bytes()
        except FileNotFoundError:  # moved this very moment
            return False
        path = self._path((node, f"{fresh}.{known.partition('.')[2]}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return True

    def _service(self) -> bool:
        self._cluster.kill_service()
        self._cluster.start_service()
        return True

    def _heal(self) -> bool:
        """Wait until nothing is lost any more."""
        eventually(self._is_whole, "everything is whole", _PATIENCE_S)
        self._losses = 0
        return True

    def _is_whole(self) -> bool:
        """As the disks themselves have it, and as MetaDB says."""
        places = kept(self._cluster)
        alive = {self._cluster.node(i).id for i in self._alive()}
        if not all(node in alive and is_sound(self._path((node, name))) for node, name in places):
            return False
        return all(
            health(self._cluster, uuid)["redundancy_left"] >= self._policy.m
            and not health(self._cluster, uuid)["missing_fragments"]
            for uuid in self.files
        )

    def _path(self, place: Place) -> Path:
        node, name = place
        if node not in self._numbers:
            self._numbers = {self._cluster.node(i).id: i for i in range(len(self._cluster.nodes))}
        folder = self._cluster.node_folder(self._numbers[node])
        return folder / "data" / name[:2] / name[2:4] / name

    # --- the end ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError unless everything that was promised holds, with the help of nobody."""
        self._read_back()
        for i in sorted(set(range(len(self._cluster.nodes))) - self._alive()):
            self._cluster.start_node(i)
        wait_whole(self._cluster, self.files, self._policy.m, _PATIENCE_S)
        self._heal()
        wait_no_surplus(self._cluster, _PATIENCE_S)
        self._read_back()
        for uuid in self._deleted:
            assert self._cluster.request("GET", f"/download/{uuid}").status == 404, uuid
        log = self._cluster.service.log.read_text(errors="replace")
        assert _TAKEN_AWAY not in log, "a live fragment was put aside"
        gone = set(_MISSING.findall(log)) - self._damaged
        assert not gone, f"live fragments are gone that nobody damaged: {gone}"

    def _read_back(self) -> None:
        for uuid, (size, seed) in self.files.items():
            assert self._cluster.download(uuid) == noise(size, seed), f"{uuid} is not what was uploaded"


def damage(path: Path, way: int, at: int) -> None:
    """Way 0: flip a bit; 1: cut short; 2: empty it; 3: remove it."""
    size = path.stat().st_size
    match way % 4 if size else 3:  # what is empty can only be removed
        case 0:
            with path.open("r+b") as file:
                file.seek(at % size)
                [byte] = file.read(1)
                file.seek(at % size)
                file.write(bytes([byte ^ 1 << at % 8]))
        case 1:
            os.truncate(path, at % size)
        case 2:
            os.truncate(path, 0)
        case _:
            path.unlink()


def run_walk(
    cluster: Cluster,
    policy: Policy,
    seed: int,
    steps: Iterable[Step] | int,
    faults: Collection[str] = (),
) -> Walk:
    """``steps``: how many to choose by the seed, or the very ones. Of chosen ones there are more, until something of
    each kind in ``faults`` was done. Raises WalkFailed."""
    walk = Walk(cluster, policy, Random(seed))
    try:
        if isinstance(steps, int):
            while len(walk.steps) < steps or not walk.done.keys() >= set(faults):
                walk.take(walk.choose())
        else:
            for step in steps:
                walk.take(step)
        walk.check()
    except (AssertionError, OSError, http.client.HTTPException, DistfsError) as e:
        listed = "\n".join(map(str, walk.steps))
        raise WalkFailed(
            f"walk with seed {seed} and policy {policy}: {type(e).__name__}: {e}\n{listed}\n"
            f"replay: python -m tests.faults.walk --policy {policy} --seed {seed} --replay FILE-OF-THESE-STEPS"
        ) from e
    return walk


# --- on the command line ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _databases() -> Iterator[Callable[[], str]]:
    """-> a function that makes a migrated database of its own, on a server for all of them."""
    with scratch_folder() as folder:
        server = EmbeddedPostgres(Path(folder) / "metadb", FAST)
        server.start()
        numbers = itertools.count(1)

        def make() -> str:
            name = f"walk_{next(numbers)}"
            run_sql(server.url, f"CREATE DATABASE {name}")
            url = database_url(server, name)
            meta = MetaDB(MetaDBConfig(url=url))
            meta.migrate()
            meta.close()
            return url

        try:
            yield make
        finally:
            server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.walk", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60, help="begin new walks for so long (%(default)s)")
    add("--seed", type=int, help="of the first walk; the next ones count up (default: by the clock)")
    add("--steps", type=int, default=60, help="of each walk (%(default)s)")
    add("--policy", action="append", type=Policy.parse, help="k+m; several take turns (1+1 2+1 2+2)")
    add("--replay", type=Path, metavar="FILE", help="one walk, with the steps of this file, one a line")
    given = parser.parse_args()
    policies = given.policy or [Policy(1, 1), Policy(2, 1), Policy(2, 2)]
    seed = given.seed if given.seed is not None else int(time.time())
    steps: Iterable[Step] | int = given.steps
    if given.replay:
        lines = given.replay.read_text().splitlines()
        steps = [Step.parse(line) for line in lines if line.strip() and not line.startswith("walk")]
    ends, walks = time.monotonic() + given.seconds, 0
    with _databases() as make_database:
        while walks == 0 or (not given.replay and time.monotonic() < ends):
            _one(make_database(), policies[walks % len(policies)], seed + walks, steps)
            walks += 1
    print(f"{walks} walks; everything acknowledged came back")
    return 0


def _one(url: str, policy: Policy, seed: int, steps: Iterable[Step] | int) -> None:
    began = time.monotonic()
    print(f"walk with seed {seed}, policy {policy}: ", end="", flush=True)
    with tempfile.TemporaryDirectory(prefix="distfs-walk-") as folder:
        cluster = Cluster(Path(folder) / "cluster", url, nodes_for(policy), walk_settings(policy))
        with cluster:
            walk = run_walk(cluster, policy, seed, steps)
    kinds = ", ".join(f"{count} {kind}" for kind, count in walk.done.items())
    print(f"{kinds}; {len(walk.files)} files left, {walk.refused} refused, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WalkFailed as e:
        sys.exit(f"\n{e}")
