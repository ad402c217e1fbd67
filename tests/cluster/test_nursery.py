"""A part that is forked is what it would be had it been executed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import nursery
from tests.cluster.harness import PATIENCE_S, Cluster, clean_environment
from tests.contract.litter import eventually

MIRROR = [sys.executable, "-m", "tests.mirror", "7"]


def end(part: nursery.Part | subprocess.Popen[str], log: Path) -> tuple[int, Any, str]:
    """-> its exit code, what it told, and its standard error."""
    assert part.stdin is not None
    assert part.stdout is not None
    with part.stdout:
        with part.stdin:
            part.stdin.write("some words")
        told = json.loads(part.stdout.read())
    return part.wait(PATIENCE_S), told, log.read_text()


@pytest.mark.parametrize("more", [{}, {"PYTHONIOENCODING": "ascii:replace", "DISTFS_HTTP_PORT": "1"}])
def test_it_is_as_if_executed(tmp_path: Path, more: dict[str, str]) -> None:
    environ = clean_environment(**more)
    ended = []
    for start in (nursery.start, subprocess_start):
        with (tmp_path / start.__name__).open("w") as log:
            part = start(MIRROR, tmp_path, environ, nursery.PIPE, nursery.PIPE, log)
        ended.append(end(part, Path(log.name)))
    (forked, tells, says), (executed, told, said) = ended
    assert {key: (tells[key], told[key]) for key in told if tells[key] != told[key]} == {}
    assert (forked, says) == (executed, said) == (7, "an error\n")
    assert tells["read"] == "some words"


def subprocess_start(
    argv: list[str], cwd: Path, environ: dict[str, str], stdin: int, stdout: int, stderr: Any
) -> subprocess.Popen[str]:
    more = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "text": True}
    return subprocess.Popen(argv, cwd=cwd, env=environ, start_new_session=True, **more)


@contextmanager
def waiting(folder: Path) -> Iterator[nursery.Part]:
    """One that waits for its standard input to end."""
    part = nursery.start(MIRROR, folder, clean_environment(), nursery.PIPE, nursery.PIPE)
    assert isinstance(part, nursery.Part)
    assert part.stdin is not None
    assert part.stdout is not None
    with part.stdin, part.stdout:
        yield part
        part.kill()
        part.wait(PATIENCE_S)


def test_its_end_is_known_whatever_ended_it(tmp_path: Path) -> None:
    with waiting(tmp_path) as part:
        with pytest.raises(subprocess.TimeoutExpired):
            part.wait(0.05)
        assert part.poll() is None
        part.send_signal(signal.SIGSTOP)
        eventually(lambda: psutil.Process(part.pid).status() == psutil.STATUS_STOPPED, "it stands still")
        part.kill()
        assert (part.wait(PATIENCE_S), part.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
        assert not psutil.pid_exists(part.pid)
        part.kill()  # nobody: its number may be another's


def test_none_keeps_another_ones_pipes(tmp_path: Path) -> None:
    """Or a part would not notice the end of its parent, nor its reader the end of a part."""
    with waiting(tmp_path) as first, waiting(tmp_path) as second:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.close()
        assert json.loads(first.stdout.read())["read"] == ""
        assert first.wait(PATIENCE_S) == 7
        assert second.poll() is None


def test_commands_run_side_by_side(tmp_path: Path) -> None:
    ended: list[subprocess.CompletedProcess[str]] = []

    def version() -> None:
        command = [sys.executable, "-m", "distfs", "--version"]
        ended.append(nursery.run(command, tmp_path, clean_environment(), PATIENCE_S))

    threads = [threading.Thread(target=version) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(each.returncode, each.stdout.split()[0], each.stderr) for each in ended} == {(0, "distfs", "")}


def test_a_command_that_takes_too_long_is_ended(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "distfs", "serve", "--port", "0", "--metadb", cluster.metadb_url]
    with pytest.raises(subprocess.TimeoutExpired) as told:
        nursery.run(command, cluster.folder, clean_environment(), 2)
    assert "Traceback" not in str(told.value.stderr)
