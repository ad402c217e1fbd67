"""The parts of ``distfs up`` are forked from it, and are what they would be had they been executed."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import ROOT
from tests.cluster.test_up import StartUp, Up, curl, processes_in
from tests.contract.litter import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are executed")


def shared_mb(pid: int) -> float:
    """What it has in memory together with others and was written to since it was read, if ever: never after exec."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"Shared_Dirty: +(\d+) kB", text)) / 1000


def python_parts(running: Up) -> dict[str, int]:
    """All but PostgreSQL."""
    return {name: pid for name, pid in running.children().items() if name != "metadb"}


def links(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for entry in folder.iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def state(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_each_part_shares_what_is_loaded_also_one_that_was_started_again(up: StartUp) -> None:
    running = up().wait_ready()
    first = python_parts(running)
    assert all(shared_mb(pid) > 5 for pid in first.values()), {n: shared_mb(p) for n, p in first.items()}
    for name in ("node1", "serve"):
        os.kill(first[name], signal.SIGKILL)
    eventually(lambda: len(python_parts(running).items() - first.items()) == 2, "they are there again")
    again = python_parts(running)
    assert all(shared_mb(pid) > 5 for pid in again.values())
    assert running.stop() == 0


def test_each_part_is_named_and_has_nothing_of_another(up: StartUp, data: Path) -> None:
    running = up().wait_ready()
    parts = python_parts(running)
    ours = links(running.process.pid)
    seen: dict[str, str] = {}
    for name, pid in parts.items():
        about = state(pid)
        assert about["Name"] == name.replace("serve", "service")
        assert int(about["SigBlk"], 16) == 0
        assert (os.getpgid(pid), os.getsid(pid)) == (pid, pid)
        theirs = links(pid)
        assert str(data / "parts.lock") in theirs
        assert str(data / "up.lock") not in theirs
        pipes = {link for link in theirs if link.startswith("pipe:")}
        assert len(pipes & set(ours)) == 3
        assert not pipes & seen.keys(), f"{name} has pipes of {seen[next(iter(pipes & seen.keys()))]}"
        seen.update(dict.fromkeys(pipes, name))
        assert not any(link.startswith("socket:") for link in set(theirs) & set(ours))
    assert len(os.listdir(f"/proc/{running.process.pid}/task")) == 1  # else it could not fork
    assert running.stop() == 0


def test_a_part_that_is_started_again_has_the_settings_of_that_moment(up: StartUp, tmp_path: Path) -> None:
    """They are read by who forks it; what is wrong with them is its own to say, and ends nothing else."""
    running = up().wait_ready()
    node = running.children()["node1"]
    (tmp_path / "config.yml").write_text("node: {no_such_key: 1}")
    os.kill(node, signal.SIGKILL)
    running.says("node1    | storage_server: config: unknown key node.no_such_key")
    running.says("node1 ended with exit code 2; starting it again")
    (tmp_path / "config.yml").write_text("log: {level: WARNING}")
    eventually(lambda: running.children().get("node1", node) != node, "it is back")
    assert running.stop() == 0


def test_a_part_that_cannot_be_started_for_want_of_descriptors_is_started_when_there_are_some(
    up: StartUp,
) -> None:
    running = up().wait_ready()
    pid, node = running.process.pid, running.children()["node1"]
    numbers = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    # Free then are the three of the node that ends, and one more; a new one takes six.
    few = max(most for most in range(999) if len(set(range(most)) - numbers) <= 1)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
    os.kill(node, signal.SIGKILL)
    running.says("node1 could not be started: this process may have no more than")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: running.children().get("node1", node) != node, "it is back")
    assert running.stop() == 0


def test_where_it_may_not_fork_the_parts_are_executed(up: StartUp, data: Path, tmp_path: Path) -> None:
    """As another thread is there: Python runs this file first of all."""
    script = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(script)
    running = up(PYTHONPATH=f"{tmp_path}:{ROOT}").wait_ready()
    assert len(os.listdir(f"/proc/{running.process.pid}/task")) == 2
    uuid = curl("--data-binary", "kept", "-X", "PUT", f"{running.url}/upload/x").decode().strip()
    first = running.children()
    assert sorted(first) == ["metadb", "node1", "node2", "node3", "serve"]
    assert all(shared_mb(pid) == 0 for pid in python_parts(running).values())
    os.kill(first["node1"], signal.SIGKILL)
    running.says("node1 was killed by SIGKILL; starting it again")
    eventually(lambda: running.children().get("node1", first["node1"]) != first["node1"], "it is back")
    assert curl(f"{running.url}/download/{uuid}") == b"kept"
    assert running.stop() == 0
    assert processes_in(data) == []
