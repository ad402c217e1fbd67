"""A cluster of real processes for a test: storage nodes and a service, on the test's own database.

    with Cluster(tmp_path, metadb_url, nodes=3) as cluster:
        uuid = cluster.upload(b"bytes", "name")
        cluster.kill_node(0)
        assert cluster.download(uuid) == b"bytes"

or, by the fixture, ``cluster = make_cluster(nodes=3)``. Nodes are counted from 0. When a test fails, what the
processes logged is shown. Whatever happens, every process is gone afterwards.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

import pytest

from distfs.config import file as configuration
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.model import Node
from distfs.process.parent_watch import FLAG
from distfs.storage.disk.home import read_identity
from tests import nursery
from tests.contract.litter import eventually
from tests.postgres import databases

ROOT = Path(__file__).resolve().parents[2]

#: Generous: reached only when something is broken, or the machine is very busy.
PATIENCE_S = 60.0

Settings = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Answer:
    """What an HTTP request was answered with. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def clean_environment(**more: str) -> dict[str, str]:
    """Ours without settings of distfs, so that a test means the same everywhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DISTFS_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of hundreds of processes would compile all of distfs
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class Process:
    """One process of the cluster. ``argv`` may be changed between a stop and a start."""

    def __init__(self, name: str, argv: list[str], folder: Path, log: Path) -> None:
        self.name, self.argv, self.log = name, argv, log
        self._folder = folder
        self._process: subprocess.Popen[str] | nursery.Part | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        self._close()
        with self.log.open("a") as log:
            self._process = nursery.start(
                [*self.argv, FLAG],
                self._folder,
                clean_environment(),
                stdin=nursery.PIPE,
                stdout=nursery.PIPE,
                stderr=log,
            )

    @property
    def stdout(self) -> IO[str]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and wait; -> its exit code. Fails when it does not end."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """-> its exit code, when it has ended by itself."""
        if self._process is None:
            return 0
        code = self._process.wait(PATIENCE_S)
        self._close()
        return code

    def pause(self) -> None:
        """SIGSTOP: it is there and does not answer."""
        assert self.alive, f"{self.name} has ended before"
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _close(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()


class Cluster:
    """Storage nodes and one service on a MetaDB that is there already. Ready when entered."""

    def __init__(
        self,
        folder: Path,
        metadb_url: str,
        nodes: int = 3,
        config: Settings | None = None,
        through: str = "",
    ) -> None:
        """``metadb_url``: of a migrated database of the test's own. ``config``: as in config.yml.

        ``through``: a module that runs each process; it is told the process's name, its module and its flags.
        """
        self.folder, self.url = folder, ""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {section: dict(values) for section, values in (config or {}).items()}
        settings.setdefault("metadb", {}).setdefault("url", metadb_url)
        self.settings, self.metadb_url, self._through = settings, metadb_url, through
        self.write_settings()
        self.meta = MetaDB(MetaDBConfig(url=metadb_url), self._down_after(settings))
        self.nodes = [
            self._process(f"node{i}", "distfs.storage_server", "--init", "--port", "0", "--data", f"node{i}")
            for i in range(nodes)
        ]
        self.service = self._process("service", "distfs", "serve", "--port", "0")

    def use_metadb(self, url: str) -> None:
        """Processes that start from now on, and this object, use another MetaDB."""
        self.settings = {**self.settings, "metadb": {**self.settings["metadb"], "url": url}}
        self.write_settings()
        self.meta.close()
        self.metadb_url, self.meta = url, MetaDB(MetaDBConfig(url=url), self._down_after(self.settings))

    def write_settings(self) -> None:
        """``settings`` are those of the processes that start from now on."""
        (self.folder / "config.yml").write_text(json.dumps(self.settings))  # JSON is YAML

    @staticmethod
    def _down_after(settings: Settings) -> float:
        return configuration.parse(settings).node.down_after

    def _process(self, name: str, module: str, *flags: str) -> Process:
        through = [self._through, name] if self._through else []
        argv = [sys.executable, "-m", *through, module, *flags]
        return Process(name, argv, self.folder, self.folder / f"{name}.log")

    def __enter__(self) -> Cluster:
        try:
            for process in (*self.nodes, self.service):
                process.start()
            self._learn_url()
            for node in self.nodes:
                self._require_alive(node)
            self.wait_ready()
        except BaseException:
            self.close(show=True)
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(show=kind is not None)

    def close(self, *, show: bool = False) -> None:
        """End every process, at once. ``show``: what they logged goes to stderr."""
        self.meta.close()
        for process in (self.service, *self.nodes):
            process.kill()
        if show:
            print(self.logs(), file=sys.stderr)

    def logs(self) -> str:
        """What every process logged so far."""
        parts = [
            (p.name, p.log.read_text(errors="replace")) for p in (*self.nodes, self.service) if p.log.exists()
        ]
        return "\n".join(f"--- {name}\n{text}" for name, text in parts)

    # --- nodes ----------------------------------------------------------------------------------------

    def kill_node(self, i: int) -> None:
        """kill -9. It has to be alive: what killed it before was another fault than this."""
        self._require_alive(self.nodes[i])
        self.nodes[i].kill()

    def stop_node(self, i: int) -> int:
        """SIGTERM; -> the exit code."""
        return self.nodes[i].stop()

    def start_node(self, i: int) -> None:
        """Start it again, on the port it had, and wait until MetaDB hears of it."""
        started = time.monotonic()
        self.nodes[i].start()
        eventually(lambda: self._heard_of(i, started), f"node {i} is back")

    def _heard_of(self, i: int, started: float) -> bool:
        """Whether it has said that it lives since then: its last word of before may be as young as it likes."""
        self._require_alive(self.nodes[i])
        since = time.monotonic() - started  # before MetaDB is asked, which takes its time
        now = self.node(i)
        return now.alive and now.heartbeat_age < since

    def add_node(self, *flags: str) -> int:
        """Start one more, new and empty; -> its number, as soon as the cluster knows it."""
        i = len(self.nodes)
        name = f"node{i}"
        argv = ["--init", "--port", "0", "--data", name, *flags]
        self.nodes.append(self._process(name, "distfs.storage_server", *argv))
        self.nodes[i].start()
        eventually(partial(self.is_registered, i), f"node {i} is registered")
        return i

    def pause_node(self, i: int) -> None:
        """SIGSTOP."""
        self.nodes[i].pause()

    def resume_node(self, i: int) -> None:
        self.nodes[i].resume()

    def node_folder(self, i: int) -> Path:
        """Its data folder."""
        return self.folder / f"node{i}"

    def node(self, i: int) -> Node:
        """Node i as MetaDB knows it."""
        found = self._registered(i)
        assert found is not None, f"node {i} is not registered"
        return found

    def _registered(self, i: int) -> Node | None:
        identity = read_identity(self.node_folder(i))
        nodes = self.meta.nodes(Deadline(PATIENCE_S))
        return next((n for n in nodes if identity and n.uuid == identity.node), None)

    def fragments(self, i: int) -> list[Path]:
        """The fragment files on node i's disk."""
        return sorted(p for p in (self.node_folder(i) / "data").rglob("*") if p.is_file())

    # --- the service ------------------------------------------------------------------------------------

    def kill_service(self) -> None:
        """kill -9 of one that is alive."""
        self._require_alive(self.service)
        self.service.kill()

    def stop_service(self) -> int:
        """SIGTERM; -> the exit code."""
        return self.service.stop()

    def start_service(self) -> None:
        """Start it again, where it was, and wait until it is ready."""
        self.service.start()
        self._learn_url()
        self.wait_ready()

    def _learn_url(self) -> None:
        self.url = self.service.stdout.readline().strip()
        if not self.url:
            self.service.wait()
            self._require_alive(self.service)
        flag = self.service.argv.index("--port")
        self.service.argv[flag + 1] = str(urlsplit(self.url).port)

    def wait_ready(self) -> None:
        """Until /readyz is 200 and every node that runs is in MetaDB."""
        for i, process in enumerate(self.nodes):
            if process.alive:
                eventually(partial(self.is_registered, i), f"node {i} is registered")
                process.argv[process.argv.index("--port") + 1] = str(self.node(i).address.port)
        eventually(self._is_ready, "the service is ready")

    def is_registered(self, i: int) -> bool:
        self._require_alive(self.nodes[i])
        try:
            node = self._registered(i)
        except DistfsError:
            return False
        return node is not None and node.alive

    def _is_ready(self) -> bool:
        self._require_alive(self.service)
        try:
            return self.request("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _require_alive(self, process: Process) -> None:
        assert process.alive, f"{process.name} ended:\n{process.log.read_text(errors='replace')}"

    # --- HTTP -------------------------------------------------------------------------------------------

    def connect(self, timeout: float = PATIENCE_S) -> http.client.HTTPConnection:
        """A connection to the service, for what the methods below do not do."""
        place = urlsplit(self.url)
        return http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own. ``body``: bytes, an open file, or an iterable (chunked)."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            data = response.read()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)

    def upload(self, data: bytes | Path, name: str = "file") -> str:
        """-> the UUID; fails on anything but 201."""
        path = f"/upload/{quote(name, safe='')}"
        if isinstance(data, Path):
            size = {"Content-Length": str(data.stat().st_size)}
            with data.open("rb") as stream:
                answer = self.request("PUT", path, stream, size)
        else:
            answer = self.request("PUT", path, data)
        assert answer.status == 201, f"{answer.status} {answer.text}"
        return answer.text.strip()

    def download(self, uuid: str) -> bytes:
        """-> the bytes; fails on anything but 200. Raises http.client.IncompleteRead when they are cut short."""
        answer = self.request("GET", f"/download/{uuid}")
        assert answer.status == 200, f"{answer.status} {answer.text}"
        return answer.body


MakeCluster = Callable[..., Cluster]


@contextlib.contextmanager
def clusters(folder: Path, make_database: Callable[[str], str]) -> Iterator[MakeCluster]:
    """-> a function: (nodes=3, config={...}) -> a ready Cluster on a database of its own. They end with this."""
    made: list[Cluster] = []

    def make(nodes: int = 3, config: Settings | None = None, through: str = "") -> Cluster:
        path = folder / f"cluster{len(made)}"
        made.append(Cluster(path, make_database("migrated"), nodes, config, through))
        return made[-1].__enter__()

    yield make
    for cluster in made:
        cluster.close(show=True)  # pytest shows it when the test failed


@pytest.fixture
def make_cluster(tmp_path: Path, make_database: Callable[[str], str]) -> Iterator[MakeCluster]:
    """``clusters`` of this test."""
    with clusters(tmp_path, make_database) as make:
        yield make


@pytest.fixture(scope="module")
def share_cluster(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> Iterator[MakeCluster]:
    """``clusters`` of all tests of a module, each of which leaves them as ready as it found them."""
    with (
        databases(postgres) as make_database,
        clusters(tmp_path_factory.mktemp("shared"), make_database) as make,
    ):
        yield make


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """Three nodes and a service, with the defaults."""
    return make_cluster()
