"""Ending a ``distfs up``: from another shell, and by closing the terminal it runs in."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.harness import clean_environment
from tests.cluster.test_up import StartUp, processes_in, refused
from tests.contract.litter import eventually
from tests.privileges import do_without
from tests.processes import has_ended

#: Takes its standard input as its controlling terminal and becomes another program, with SIGHUP ignored or not.
_IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def down(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distfs", "down", *flags],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- distfs down ------------------------------------------------------------------------------------------


def test_down_ends_all_of_it(up: StartUp, data: Path, tmp_path: Path) -> None:
    running = up().wait_ready()
    pid = running.process.pid
    line = refused(up())
    remedy = f"distfs down --data {data}"
    assert line == (
        f"distfs: another `distfs up` (process {pid}) uses {data}: stop it with `{remedy}`, "
        "or choose another folder with --data"
    )
    ended = down(*shlex.split(remedy)[2:], cwd=tmp_path)
    assert processes_in(data) == []  # it has waited for that
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"`distfs up` (process {pid}) and its parts have stopped; the data is in {data}\n"
    assert running.wait() == 0
    again = down(cwd=tmp_path)  # ./data is the default
    assert (again.returncode, again.stdout) == (0, f"no `distfs up` runs in {data}\n")
    assert up().wait_ready().stop() == 0


def test_down_ends_one_that_starts(up: StartUp, data: Path, tmp_path: Path) -> None:
    starting = up(new=True)
    eventually((data / "metadb").exists, "MetaDB is being made")
    assert down("--data", str(data), cwd=tmp_path).returncode == 0
    assert processes_in(data) == []
    assert starting.wait() == 0


def test_down_waits_for_what_a_killed_one_left(up: StartUp, data: Path, tmp_path: Path) -> None:
    """And takes nobody for it who has its number now: the kernel says who holds the folder."""
    killed = up().wait_ready()
    killed.signal(signal.SIGKILL)
    killed.wait()
    ended = down("--data", str(data), cwd=tmp_path)
    assert processes_in(data) == []
    assert (ended.returncode, ended.stdout) == (0, f"no `distfs up` runs in {data}\n")


def test_down_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mistyped").mkdir()
    ended = down("--data", "mistyped", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "mistyped is no data folder of a `distfs up`" in ended.stderr
    assert list((tmp_path / "mistyped").iterdir()) == []


# --- its terminal -----------------------------------------------------------------------------------------


class InTerminal:
    """A program that leads a terminal's session, ``distfs up`` or a shell that runs it."""

    def __init__(self, data: Path, *words: str, hangups: str = "heard") -> None:
        try:
            self._master, slave = os.openpty()
        except OSError as e:  # a root without /dev/pts
            do_without(f"a terminal of one's own: {e.strerror}")
        self._data, self._said, self._log = data, data.with_name("said"), data.with_name("log")
        with self._said.open("wb") as said, self._log.open("wb") as log:
            self.leader = subprocess.Popen(
                [sys.executable, "-c", _IN_A_TERMINAL, hangups, *words],
                cwd=data.parent,
                env=clean_environment(),
                stdin=slave,
                stdout=said,
                stderr=log,
                start_new_session=True,
            )
        os.close(slave)
        eventually(lambda: "ready at" in self._said.read_text(), "it is ready")
        leads = psutil.Process(self.leader.pid)
        [self.up] = [one for one in (leads, *leads.children()) if one.cmdline()[2:4] == ["distfs", "up"]]

    def says(self, words: str) -> None:
        eventually(lambda: words in self._log.read_text(), f"it says {words!r}")

    def close_terminal(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def is_gone(self) -> bool:
        return has_ended(self.up)

    def close(self) -> None:
        self.close_terminal()
        with contextlib.suppress(psutil.NoSuchProcess):
            self.up.kill()
        self.leader.kill()
        self.leader.wait()
        print(self._log.read_text(), file=sys.stderr)
        eventually(lambda: not processes_in(self._data), "everything is gone")


UP = [sys.executable, "-m", "distfs", "up", "--port", "0"]
IN_A_SHELL = ["sh", "-c", f"{shlex.join(UP)}; exit"]


@pytest.fixture
def data_of_one(data: Path, pristine_postgres: Path) -> Path:
    data.mkdir(mode=0o711)
    subprocess.run(["cp", "-a", pristine_postgres, data / "metadb"], check=True)
    return data


@pytest.fixture
def terminals() -> Iterator[list[InTerminal]]:
    started: list[InTerminal] = []
    yield started
    for one in started:
        one.close()


@pytest.mark.parametrize("words", [UP, IN_A_SHELL], ids=["itself", "in a shell"])
def test_closing_the_terminal_ends_it(
    terminals: list[InTerminal], data_of_one: Path, words: list[str]
) -> None:
    terminals.append(running := InTerminal(data_of_one, *words))
    running.close_terminal()
    eventually(running.is_gone, "it ends")
    assert processes_in(data_of_one) == []


def test_a_shell_that_is_killed_takes_it_along(terminals: list[InTerminal], data_of_one: Path) -> None:
    terminals.append(running := InTerminal(data_of_one, *IN_A_SHELL))
    assert running.up.pid != running.leader.pid
    running.leader.kill()
    eventually(running.is_gone, "it ends")
    assert processes_in(data_of_one) == []


def test_sighup_in_a_terminal_that_is_there_reads_the_configuration(
    terminals: list[InTerminal], data_of_one: Path
) -> None:
    config = data_of_one.with_name("config.yml")
    config.write_text("")
    terminals.append(running := InTerminal(data_of_one, *UP))
    config.write_text("bandwidth: {cap_out: 7MB/s}")
    running.up.send_signal(signal.SIGHUP)
    running.says("bandwidth.cap_out 0 -> 7000000")
    assert not running.is_gone()


def test_one_that_ignores_sighup_outlives_its_terminal(
    terminals: list[InTerminal], data_of_one: Path, tmp_path: Path
) -> None:
    """As nohup has it. Whoever sends the signal still has the configuration read anew."""
    terminals.append(running := InTerminal(data_of_one, *UP, hangups="ignored"))
    running.close_terminal()
    running.says("the configuration was read anew: nothing to apply")  # of the kernel's own SIGHUP
    running.up.send_signal(signal.SIGHUP)
    eventually(lambda: running._log.read_text().count("was read anew") == 2, "it is read again")
    assert not running.is_gone()
    assert down(cwd=tmp_path).returncode == 0
    assert running.is_gone()
