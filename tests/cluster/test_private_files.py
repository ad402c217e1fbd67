"""Whatever the umask distfs is started with: what it makes is its own account's alone, and what is not is told."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import clean_environment

ROOT = Path(__file__).resolve().parents[2]


def open_ones(folder: Path) -> list[tuple[str, str]]:
    """What others may read, write or list; to pass through a folder of root's is nothing."""
    found = []
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # PostgreSQL has just given it another name
            found.append((path, path.lstat()))
    return [
        (str(path.relative_to(folder)), oct(status.st_mode))
        for path, status in found
        if not stat.S_ISLNK(status.st_mode)
        and status.st_mode & (0o066 if stat.S_ISDIR(status.st_mode) and not os.geteuid() else 0o077)
    ]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A path so short that PostgreSQL's socket has its place below it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("umask", [0o000, 0o777], ids=oct)
def test_all_that_a_cluster_makes_is_its_own_whatever_the_umask(short_folder: Path, umask: int) -> None:
    words = [sys.executable, "-m", "distfs", "up", "--data", "data", "--port", "0"]
    with subprocess.Popen(
        words,
        cwd=short_folder,
        env=clean_environment(PYTHONPATH=str(ROOT), DISTFS_NODE_RESERVE="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=umask,
    ) as up:
        try:
            assert up.stdout is not None
            ready = up.stdout.readline()
            assert ready.startswith("distfs is ready at http://"), up.stderr and up.stderr.read()
            url = ready.split()[4].rstrip(",")
            request = urllib.request.Request(f"{url}/upload/x", b"x" * 3_000_000, method="PUT")  # noqa: S310 - ours
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - ours
                assert answer.status == 201
            data = short_folder / "data"
            assert [path for path in data.rglob("*") if path.is_socket()]
            assert [path.name for path in data.rglob("cluster.key")] == ["cluster.key"] * 3
            assert [path for path in data.rglob("*.0") if path.is_file()]
            assert open_ones(data) == []
        finally:
            up.terminate()
            _, said = up.communicate(timeout=120)
    assert "open to others" not in said
    assert open_ones(short_folder / "data") == []


def test_a_data_folder_that_is_open_is_told_of_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "n"
    environ = clean_environment(PYTHONPATH=str(ROOT), DISTFS_METADB_URL="postgresql://x@127.0.0.1:1/x")
    subprocess.run(
        [sys.executable, "-m", "distfs", "node", "init", "--data", str(folder)], env=environ, check=True
    )
    assert open_ones(folder) == []
    folder.chmod(0o755)
    words = [sys.executable, "-m", "distfs.storage_server", "--data", str(folder), "--port", "0"]
    with subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True) as node:
        assert node.stderr is not None
        line = node.stderr.readline()
        node.kill()
    assert f"data folder {folder} is open to others on this machine: chmod go-rw {folder}" in line
