"""The commands of README and docs/, as somebody runs them with a fresh clone, Python and make, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from distfs.metadb.embedded_postgres import EmbeddedPostgres
from tests.cluster.harness import PATIENCE_S, ROOT, Cluster
from tests.cluster.operating import distfs
from tests.contract.litter import eventually
from tests.ports import free_port
from tests.postgres import database_url, run_sql, scratch_folder

INSTALL_LIMIT_S = 300.0
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]


class Shell:
    """bash in one folder, with the interpreter of this test run and none of its packages."""

    def __init__(self, folder: Path, log: Path, said_for: Mapping[str, str]) -> None:
        """``said_for``: what stands in the README -> what it is here."""
        self.folder, self._log, self._said_for = folder, log, said_for
        python = Path(sys._base_executable)  # type: ignore[attr-defined]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DISTFS_", "VIRTUAL_ENV", "PYTHON"))}
        self._env = {**kept, "PATH": f"{python.parent}:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHON": str(python)}
        self._running: list[subprocess.Popen[str]] = []

    def here(self, command: str) -> str:
        for there, here in self._said_for.items():
            command = command.replace(there, here)
        return command

    def run(self, command: str, limit: float = INSTALL_LIMIT_S) -> str:
        """-> what it wrote on standard output; fails when it does."""
        done = self.try_to(command, limit)
        assert done.returncode == 0, f"{self.here(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def try_to(self, command: str, limit: float = INSTALL_LIMIT_S) -> subprocess.CompletedProcess[str]:
        bash = ["bash", "-euo", "pipefail", "-c", self.here(command)]
        return subprocess.run(
            bash, cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=limit, check=False
        )

    def start(self, command: str) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            self._running.append(
                subprocess.Popen(
                    ["bash", "-euo", "pipefail", "-c", self.here(command)],
                    cwd=self.folder,
                    env=self._env,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    text=True,
                )
            )
        return self._running[-1]

    def stop(self) -> None:
        """As Ctrl-C does it."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in self._running:
            process.wait(PATIENCE_S)
        self._running.clear()

    def says(self, words: str, limit: float = INSTALL_LIMIT_S) -> None:
        def said() -> bool:
            text = self._log.read_text()
            assert all(process.poll() is None for process in self._running), text
            return words in text

        eventually(said, f"it says {words!r}", limit)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass: under root PostgreSQL runs as somebody else, from a wheel that is in it."""
    with tempfile.TemporaryDirectory(prefix="distfs-readme-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def clone(place: Path) -> Path:
    """What is in the repository, or about to be, and nothing beside it."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    folder = place / "distfs"
    for name in filter(None, names):
        if (source := ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    return folder


@pytest.fixture
def other(copy_of_postgres: Callable[[Path], EmbeddedPostgres]) -> Iterator[str]:
    """The URL of an empty database of somebody's own PostgreSQL."""
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        server.start()
        run_sql(server.url, "CREATE DATABASE distfs")
        yield database_url(server, "distfs")
        server.stop()


def lines_of(block: str) -> list[str]:
    return [line.split("  #")[0].rstrip() for line in block.splitlines()]


def block_with(words: str) -> list[str]:
    [found] = [block for block in BLOCKS if words in block]
    return lines_of(found)


def test_no_block_of_commands_is_left_out() -> None:
    known = {
        *(
            "make run",
            "curl -F file=@README.md",
            "tar c folder",
            "pip install --c",
            "python -m distfs migrate",
        ),
        *("?policy=archive", "distfs backup", "distfs restore"),
        "-u :$TOKEN -T",  # run by test_token_command.py
        "/links",  # what they do is tried by test_links.py
        *("distfs tls init", "distfs tls node"),
        *(
            "metadb rebuild --from-nodes --dry-run",
            "metadb restore --from-nodes",
        ),  # by test_metadb_rebuild.py
    }
    assert [block for block in BLOCKS if sum(words in block for words in known) != 1] == []
    assert len(BLOCKS) == len(known)


@pytest.fixture
def shell(clone: Path, tmp_path: Path, other: str) -> Iterator[Shell]:
    port = free_port()
    said_for = {
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "postgresql://distfs@db.example:5432/distfs": f"'{other}'",
    }
    config = clone / "config.yml"
    shipped = config.read_text()
    assert shipped.count("  port: 8080") == 1
    assert shipped.count("    default: 1+1") == 1
    here = shipped.replace("  port: 8080", f"  port: {port}")
    config.write_text(here.replace("    default: 1+1", "    archive: 2+1\n    default: 1+1"))
    running = Shell(clone, tmp_path / "log", said_for)
    yield running
    running.stop()


def test_one_machine(shell: Shell) -> None:
    """Started, fed, asked, backed up, and restored, in the order of the README."""
    run, test = block_with("make run")
    shell.start(run)
    shell.says("distfs is ready at")
    assert "pytest" in shell.run(test.replace("make", "make -n")), "it is what runs this test"

    put, get = block_with("curl -F file=@README.md")
    uuid = shell.run(put).strip()
    shell.run(get.replace("UUID", uuid))
    shell.run("cmp copy.md README.md")

    for name in ("a", "b", "big.iso", "folder/x"):
        (shell.folder / name).parent.mkdir(exist_ok=True)
        (shell.folder / name).write_bytes(os.urandom(3_000_000))
    told = [shell.run(line.replace("UUID", uuid)) for line in block_with("tar c folder")]
    assert [len(text.split()) for text in told[:3]] == [1, 1, 2]
    assert told[5].count(uuid) >= 1
    gone = shell.try_to(f"curl -sf http://127.0.0.1:8080/download/{uuid}")
    assert gone.returncode == 22, "it was deleted"

    put, facts = block_with("?policy=archive")
    uuid = shell.run(put).strip()
    assert '"policy": "2+1"' in shell.run(facts.replace("UUID", uuid))

    active = ". .venv/bin/activate; "
    assert shell.run(f"{active}distfs nodes").count(" up ") == 3
    shell.run(f"{active}{block_with('distfs backup')[0]}")
    shell.stop()
    shell.run("mv data/metadb data/metadb.old")
    for line in block_with("distfs restore"):
        shell.run(active + line)
    shell.start(run)
    eventually(lambda: shell.try_to("curl -sf http://127.0.0.1:8080/readyz").returncode == 0, "it is back")
    shell.run(f"curl -sf http://127.0.0.1:8080/download/{uuid} | cmp - big.iso")


def test_the_parts_on_machines_of_their_own(shell: Shell, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    bare = shell.try_to("python3 -m distfs migrate")
    assert bare.returncode == 1
    assert bare.stderr.count("\n") == 1, "a Python without what distfs needs is told so"
    assert "pip install" in bare.stderr
    for line in block_with("pip install --c"):
        shell.run(line if "venv" in line else f". .venv/bin/activate; {line}")
    url, *parts = block_with("python -m distfs migrate")
    active = f". .venv/bin/activate; {url}; "
    shell.run(active + parts[0])
    for line, example, port in zip(parts[1:3], (9001, 9002), (first, second)):
        assert f"--port {example} " in line
        here = line.replace(f"--port {example} ", f"--port {port} ").replace("/disks/", f"{tmp_path}/disks/")
        shell.start(f"{active}exec {here}")
    decided, serve = parts[3:]
    [port] = re.findall(r"127\.0\.0\.1:(\d+)", shell.here("127.0.0.1:8080"))
    assert serve.endswith("--port 8080")
    shell.start(f"{active}{decided}; exec {serve.replace('8080', port)}")
    eventually(lambda: shell.try_to("curl -sf http://127.0.0.1:8080/readyz").returncode == 0, "it is ready")
    uuid = shell.run("curl -sS -T README.md http://127.0.0.1:8080/upload/").strip()
    shell.run(f"curl -sS http://127.0.0.1:8080/download/{uuid} | cmp - README.md")


def test_certificates(by_hand: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a service is asked by them is tried where HTTPS is."""
    monkeypatch.chdir(tmp_path)
    for line in (
        *block_with("distfs tls init"),
        *block_with("distfs tls node"),
    ):  # one after the other, as one reads
        program, *words = line.replace("DIR", str(by_hand.node_folder(0))).split()
        if program == "distfs":
            told = distfs(by_hand, *words)
            assert told.code == 0, told.err
    made = {path.name for path in (tmp_path / "ca").iterdir()}
    assert {"ca.crt", "ca.key", "service.crt", "service.key", "peer.crt", "peer.key"} <= made
    assert len([name for name in made if name.startswith("node-") and name.endswith(".crt")]) == 1
