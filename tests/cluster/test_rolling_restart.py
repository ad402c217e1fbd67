"""Each part of a cluster is restarted in turn, while clients go on through a service that stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tests.cluster.harness import clean_environment
from tests.cluster.test_up import Up, answers, curl, postmaster, processes_in
from tests.contract.litter import eventually

#: Longer than a statement may take.
_AWAY_S = 6.0


class Clients:
    """One uploads and one downloads, over and over, until they are told to stop; what went wrong is kept."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self.errors: list[str] = []
        self.rounds = {"up": 0, "down": 0}
        self._stop = threading.Event()
        self._big = os.urandom(20 << 20)
        (folder / "big").write_bytes(self._big)
        self._uuid = curl("-T", str(folder / "big"), f"{url}/upload/big").decode().strip()
        ways = {"up": self._upload, "down": self._download}
        self._threads = [threading.Thread(target=self._run, args=way) for way in ways.items()]
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        """Wait until each has begun and ended a transfer from now on."""
        aim = {way: rounds + 2 for way, rounds in self.rounds.items()}
        eventually(lambda: all(self.rounds[way] >= aim[way] for way in aim), "the clients go on")

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, way: str, once: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                once()
            except (AssertionError, subprocess.TimeoutExpired) as e:
                self.errors.append(f"{way}: {e}")
            self.rounds[way] += 1

    def _upload(self) -> None:
        data = os.urandom(5 << 20)
        (self._folder / "sent").write_bytes(data)
        uuid = curl("-T", str(self._folder / "sent"), f"{self._url}/upload/x").decode().strip()
        assert curl(f"{self._url}/download/{uuid}") == data

    def _download(self) -> None:
        assert curl(f"{self._url}/download/{self._uuid}") == self._big, "other bytes"


@contextlib.contextmanager
def second_service(data: Path, folder: Path) -> Iterator[str]:
    """A service beside the one of ``distfs up``; -> its URL."""
    environ = clean_environment(
        DISTFS_METADB_URL=f"embedded:{data / 'metadb'}",
        DISTFS_METADB_PATIENCE="50s",  # on a busy machine a restart takes longer
        DISTFS_PEERS_BASE_TIMEOUT="50s",
    )
    argv = [sys.executable, "-m", "distfs", "serve", "--port", "0"]
    with (folder / "second.log").open("w") as log:
        process = subprocess.Popen(
            argv, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


def nodes_up(url: str) -> int:
    told = subprocess.run(
        ["curl", "-s", "-H", "Accept: application/json", f"{url}/readyz"], capture_output=True
    )
    return int(json.loads(told.stdout)["nodes_up"] or 0)


def restart(running: Up, name: str) -> None:
    """SIGTERM; its parent starts it again."""
    before = running.children()[name]
    os.kill(before, signal.SIGTERM)
    eventually(lambda: running.children().get(name, before) != before, f"{name} is started again")


def restart_metadb(running: Up, data: Path, url: str, number: signal.Signals, away: float) -> None:
    """End PostgreSQL; it is back ``away`` seconds later at the soonest."""
    keeper, before = running.process.pid, postmaster(data)
    if away:
        os.kill(keeper, signal.SIGSTOP)
    os.kill(before, number)
    if away:
        eventually(lambda: not answers(f"{url}/readyz"), "MetaDB is missed")
        time.sleep(away)
        os.kill(keeper, signal.SIGCONT)
    eventually(lambda: postmaster(data) not in (0, before), "PostgreSQL is started again")
    eventually(lambda: answers(f"{url}/readyz"), "it is ready again")


def test_a_restart_of_each_part_in_turn_cuts_no_transfer(tmp_path: Path, pristine_postgres: Path) -> None:
    """Nor does what begins meanwhile fail."""
    data = tmp_path / "data"
    data.mkdir()
    subprocess.run(["cp", "-a", pristine_postgres, data / "metadb"], check=True)
    with (
        closing(Up("--data", str(data), "--port", "0", cwd=tmp_path).wait_ready()) as running,
        second_service(data, tmp_path) as url,
        closing(Clients(url, tmp_path)) as clients,
    ):
        for name in ("node1", "node2", "node3", "serve"):
            restart(running, name)
            eventually(lambda: nodes_up(url) == 3 and answers(f"{running.url}/readyz"), "all are back")
            clients.go_on()
            assert clients.errors == [], name
        for number, away in [
            (signal.SIGKILL, _AWAY_S),
            (signal.SIGINT, 0.0),
        ]:  # SIGTERM waits for clients to leave
            restart_metadb(running, data, url, number, away)
            clients.go_on()
            assert clients.errors == [], f"MetaDB, {number.name}"
    eventually(lambda: not processes_in(data), "everything is gone")
