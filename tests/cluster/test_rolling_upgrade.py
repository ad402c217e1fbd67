"""The release before beside this one, each in real processes: every order of an upgrade serves, and loses nothing.

The older tree is taken out of git. It runs with the same Python and the same packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import nursery
from tests.cluster.harness import PATIENCE_S, ROOT, Cluster, Process, clean_environment
from tests.cluster.healing import settings, wait_whole
from tests.contract.litter import eventually
from tests.postgres import run_sql

#: The last commit of the release before: what it speaks and stores is understood.
BEFORE = "94bbf074503a075b39747284a11d353970e98c0f"

#: ``python -m MODULE`` of the tree that is named first.
_RUN = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); del sys.argv[:2]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
_DAMAGE_IS_SEEN = """
CREATE TABLE damage_seen (reason text);
CREATE FUNCTION see_damage() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO damage_seen VALUES (new.reason); RETURN new; END $$;
CREATE TRIGGER see BEFORE INSERT ON damage FOR EACH ROW EXECUTE FUNCTION see_damage()
"""
_SIZES = 3_000, 600_000


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older tree."""
    folder = tmp_path_factory.mktemp("before")
    packed = subprocess.run(["git", "archive", BEFORE, "distfs", "sql"], cwd=ROOT, capture_output=True)
    if packed.returncode:
        pytest.skip("the release before is not in this checkout's history: git fetch --unshallow")
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder


class Mixed(Cluster):
    """A cluster whose parts are of either release; ``services``: those that run."""

    def __init__(self, folder: Path, url: str, before: Path) -> None:
        policies = {"policies": {"default": "1+1", "coded": "2+1"}}
        super().__init__(folder, url, 4, settings("1+1", storage=policies))
        self._before, self.files = before, dict[str, bytes]()
        for part in (*self.nodes, self.service):
            self.make_old(part)
        run_sql(url, _DAMAGE_IS_SEEN)

    def make_old(self, part: Process) -> None:
        """When it is started next."""
        assert part.argv[1] == "-m"
        part.argv[1:2] = ["-c", _RUN, str(self._before)]

    def make_new(self, part: Process) -> None:
        part.argv[1:4] = ["-m"]

    def command(self, *words: str, old: bool = False) -> tuple[int, str]:
        how = ["-c", _RUN, str(self._before)] if old else ["-m"]
        argv = [sys.executable, *how, "distfs", *words, "--config", str(self.folder / "config.yml")]
        done = nursery.run(argv, self.folder, clean_environment(), PATIENCE_S)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def start_other_service(self) -> Process:
        """A new one beside the old one; it is this cluster's, once that has ended."""
        other = self._process("new service", "distfs", "serve", "--port", "0")
        other.start()
        self.other_url = other.stdout.readline().strip()
        assert self.other_url, other.log.read_text()
        return other

    def end_old_service(self, other: Process) -> None:
        assert self.stop_service() == 0
        self.service, self.url = other, self.other_url
        other.argv[other.argv.index("--port") + 1] = str(urlsplit(self.url).port)

    def restart_as_new(self, i: int) -> None:
        if self.nodes[i].alive:
            assert self.stop_node(i) == 0
        self.make_new(self.nodes[i])
        self.start_node(i)

    def go_back(self, i: int) -> None:
        """To the release before, on the disk as it is by now."""
        assert self.stop_node(i) == 0
        self.make_old(self.nodes[i])
        self.start_node(i)

    def use(self, *urls: str) -> None:
        """Upload through each service, by each policy; each of them reads all that was ever uploaded."""
        mine = self.url
        for url in urls or (mine,):
            self.url = url
            for size in _SIZES:
                for policy in ("default", "coded"):
                    data = os.urandom(size // 2) + bytes(size // 2)  # half of it can be compressed
                    answer = self.request("PUT", f"/upload/x?policy={policy}", data)
                    assert answer.status == 201, answer.text
                    self.files[answer.text.strip()] = data
        for url in urls or (mine,):
            self.url = url
            for uuid, data in self.files.items():
                assert self.download(uuid) == data
        self.url = mine

    def lose_node(self, i: int) -> None:
        """For good; what it kept is made anew elsewhere."""
        self.kill_node(i)
        eventually(lambda: not self.node(i).alive, "the node is down")
        wait_whole(self, self.files, 1)

    def drain(self, i: int) -> None:
        code, said = self.command("drain", str(self.node(i).id), "--patience", "60")
        assert code == 0, said
        assert self.command("undrain", str(self.node(i).id))[0] == 0

    def assert_nothing_was_damaged(self) -> None:
        for old in (False, True):
            code, said = self.command("fsck", "--deep", old=old)
            assert code == 0, said
        assert run_sql(self.metadb_url, "SELECT reason FROM damage_seen") == []


@pytest.fixture
def mixed(tmp_path: Path, before: Path, make_database: Callable[[str], str]) -> Iterator[Mixed]:
    """All of it old, on a schema of before that was migrated meanwhile."""
    url = make_database("template1")
    argv = [sys.executable, "-c", _RUN, str(before), "distfs", "migrate", "--metadb", url]
    subprocess.run(argv, cwd=tmp_path, env=clean_environment(), check=True, capture_output=True)
    cluster = Mixed(tmp_path / "mixed", url, before)
    try:
        for part in (*cluster.nodes, cluster.service):
            part.start()
        cluster._learn_url()
        eventually(lambda: registered(url) == 4, "the nodes of before are there")
        eventually(cluster._is_ready, "the service of before is ready")
        cluster.use()
        assert cluster.command("migrate")[0] == 0
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.close(show=True)


def registered(url: str) -> int:
    [[count]] = run_sql(url, "SELECT count(*) FROM node WHERE heartbeat_at > now() - interval '1 s'")
    return int(count)


def test_services_first(mixed: Mixed) -> None:
    mixed.use()
    other = mixed.start_other_service()
    try:
        mixed.use(mixed.url, mixed.other_url)
        mixed.lose_node(0)  # by the older leader, of which nodes of before keep all
        mixed.end_old_service(other)
        mixed.restart_as_new(0)
        mixed.use()
        mixed.lose_node(1)  # by the newer, from both kinds of nodes
        mixed.restart_as_new(1)
        mixed.drain(2)
        for i in (2, 3):
            mixed.restart_as_new(i)
            mixed.use()
        mixed.go_back(0)
        mixed.use()
        mixed.assert_nothing_was_damaged()
    finally:
        other.kill()


def test_nodes_first(mixed: Mixed) -> None:
    for i in (0, 1):
        mixed.restart_as_new(i)
        mixed.use()
    mixed.lose_node(2)  # by the older leader, from both kinds of nodes
    for i in (2, 3):
        mixed.restart_as_new(i)
    mixed.drain(0)
    other = mixed.start_other_service()
    try:
        mixed.use(mixed.url, mixed.other_url)
        mixed.assert_nothing_was_damaged()
        mixed.end_old_service(other)
        assert mixed.command("migrate", "--finish")[0] == 0
        mixed.use()
        mixed.lose_node(3)
        assert run_sql(mixed.metadb_url, "SELECT reason FROM damage_seen") == []
    finally:
        other.kill()
