"""What is measured: a throw-away distfs and the floor, each with its own processes and data."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from bench import processes
from bench.processes import Process
from distfs.config.settings import HttpConfig
from distfs.errors import ConfigError, TooSlow, Unavailable
from distfs.process import parent_watch

ROOT = Path(__file__).parent.parent
NODES = 3
_START_S = 90.0  # the first start of PostgreSQL on a slow disk
_STOP_S = 60.0  # `up` gives its children their time one after another
#: What ``up`` says when all is there. A port chosen here could be a storage node's by the time it is bound.
_READY_AT = re.compile(r"^distfs is ready at http://127\.0\.0\.1:(\d+)\s", re.MULTILINE)
_LATE_S = 10.0  # what is there after it was left behind; on a busy machine the others take as long to end


class Target(Protocol):
    """Something that takes a file by PUT and gives it back by GET."""

    name: str

    @property
    def put_url(self) -> str: ...

    def download_url(self, answer: str) -> str:
        """Where to get what an upload answered with ``answer`` stored."""
        ...

    def processes(self) -> list[Process]:
        """Those alive now; asked again each time, since PostgreSQL's come and go."""
        ...


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent``, removed afterwards whatever happens."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="distfs-bench-", dir=parent))
    except OSError as e:
        raise ConfigError(f"--work {parent}: {e.strerror}; name a folder on the disk to measure") from e
    folder.chmod(0o755)  # started by root, PostgreSQL runs as another user and must get in
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def http_setting(key: str, value: int) -> dict[str, str]:
    """The environment that sets ``http.KEY``; nothing where this distfs has no such key, or the caller set it."""
    name = f"DISTFS_HTTP_{key}".upper()
    return {name: str(value)} if hasattr(HttpConfig(), key) and name not in os.environ else {}


def http_room(key: str, value: int) -> dict[str, str]:
    """The environment that makes the limit ``http.KEY`` at least ``value``; nothing where it is, or is none."""
    default = getattr(HttpConfig(), key, 0)
    return http_setting(key, value) if 0 < default < value else {}


@contextmanager
def set_environment(names: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes started within."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def need_room(folder: Path, wanted: int) -> None:
    """Raises ConfigError when ``folder``'s disk has less than ``wanted`` bytes and a tenth free."""
    free = shutil.disk_usage(folder).free
    if free < wanted * 1.1:
        raise ConfigError(
            f"{folder} has {free / 1e9:.1f} GB free and this needs {wanted * 1.1 / 1e9:.1f}: "
            "measure less or name another disk with --work"
        )


class Floor:
    """``bench/floor.py``: a relay and two storage processes."""

    name = "floor"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, list[subprocess.Popen[bytes]]] = {"relay": [], "storage": []}
        self._port = 0

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Floor]:
        """A floor with its data below ``folder``. Raises Unavailable when it does not start."""
        floor = cls(folder)
        try:
            floor._start()
            yield floor
        finally:
            floor._stop()

    def _start(self) -> None:
        ports = []
        for number in (1, 2):
            data = self._folder / f"floor-{number}"
            data.mkdir()
            ports.append(self._spawn("storage", str(data)))
        self._port = self._spawn("relay", *map(str, ports))

    def _spawn(self, role: str, *arguments: str) -> int:
        """Start one process -> the port it listens on."""
        child = python(["-m", "bench.floor", role, *arguments], self._folder, subprocess.PIPE)
        self._children[role].append(child)
        return int(first_line(child, f"the floor's {role} process"))

    def _stop(self) -> None:
        processes.stop(self.processes(), _STOP_S)
        for children in self._children.values():
            for child in children:
                reap(child)

    @property
    def put_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/file"

    def download_url(self, answer: str) -> str:
        return self.put_url

    def processes(self) -> list[Process]:
        pids = {role: [child.pid for child in children] for role, children in self._children.items()}
        return processes.identify(pids)


class Distfs:
    """``distfs up`` on a port of its choice: the service, three storage nodes and PostgreSQL, with default settings.

    ``DISTFS_<SECTION>_<KEY>`` in the environment changes them, as it does for users.
    """

    name = "distfs"

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.log = folder / "up.log"
        self.port = 0  # until it is ready
        self._pid_file: Path | None = None  # PostgreSQL's
        arguments = ["up", "--data", str(self.data), "--host", "127.0.0.1", "--port", "0"]
        with self.log.open("wb") as log:
            self._up = python(["-m", "distfs", *arguments, "--nodes", str(NODES)], folder, log)

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Distfs]:
        """A ready distfs with its data below ``folder``. Raises Unavailable with the log's last lines."""
        distfs = cls(folder)
        try:
            distfs._wait_ready()
            yield distfs
        finally:
            distfs._stop()

    def _wait_ready(self) -> None:
        end = time.monotonic() + _START_S
        while (said := _READY_AT.search(self.log.read_text(errors="replace"))) is None:
            if self._up.poll() is not None:
                raise Unavailable(f"distfs up ended with {self._up.returncode}: {self._last_words()}")
            if time.monotonic() > end:
                raise TooSlow(f"distfs up was not ready after {_START_S:.0f} s: {self._last_words()}")
            time.sleep(0.1)
        self.port = int(said[1])

    @contextmanager
    def service(self, module: str) -> Iterator[str]:
        """One more service on the same cluster: ``python -m MODULE serve``; -> its URL. Raises Unavailable."""
        url = f"embedded:{self.data / 'metadb'}"
        arguments = ["-m", module, "serve", "--host", "127.0.0.1", "--port", "0", "--metadb", url]
        with (self.log.parent / f"{module}.log").open("wb") as log:
            child = python([*arguments, parent_watch.FLAG], self.data, subprocess.PIPE, log)
        try:
            yield first_line(child, f"python -m {module}")
        finally:
            child.terminate()
            reap(child)

    def configure(self, yaml: str) -> None:
        """``config.yml`` is this from now on, as far as SIGHUP applies it."""
        said = self._times_read_anew()
        (self.log.parent / "config.yml").write_text(yaml)
        self._up.send_signal(signal.SIGHUP)
        end = time.monotonic() + _START_S
        while self._times_read_anew() == said:
            if time.monotonic() > end:
                raise TooSlow(f"the configuration was not read anew: {self._last_words()}")
            time.sleep(0.02)

    def _times_read_anew(self) -> int:
        return self.log.read_text(errors="replace").count("the configuration was read anew")

    def _last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def _stop(self) -> None:
        """SIGTERM to ``up``, which stops the rest; what it leaves behind is ended here."""
        everything = self.processes()
        processes.stop([process for process in everything if process.pid == self._up.pid], _STOP_S)
        reap(self._up)
        late = processes.wait_gone(everything, _LATE_S)
        processes.stop(late, _STOP_S)
        if late:
            names = ", ".join(f"{process.label} ({process.pid})" for process in late)
            print(f"  warning: distfs up left processes behind, ended now: {names}", file=sys.stderr)

    @property
    def put_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/upload/noise.bin"

    @property
    def form_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/upload"

    def download_url(self, answer: str) -> str:
        return f"http://127.0.0.1:{self.port}/download/{answer}"

    def processes(self) -> list[Process]:
        pids: dict[str, list[int]] = {"service": [], "node": [], "PostgreSQL": self._postgres(), "up": []}
        known = set(pids["PostgreSQL"])
        for pid in processes.descendants(self._up.pid):
            if pid not in known:
                pids[self._role(pid)].append(pid)
        return processes.identify(pids)

    def _postgres(self) -> list[int]:
        """The server is a daemon, no child of ``up``; the first line of its pid file says where it is."""
        if self._pid_file is None:
            self._pid_file = next((self.data / "metadb").rglob("postmaster.pid"), None)
        with suppress(OSError, ValueError, IndexError):
            if self._pid_file is not None:
                return processes.descendants(int(self._pid_file.read_text().split()[0]))
        return []

    def _role(self, pid: int) -> str:
        line = processes.command_line(pid)
        if "distfs.storage_server" in line:
            return "node"
        return "service" if "serve" in line else "up"


def python(
    arguments: list[str], folder: Path, out: int | IO[bytes], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``python ARGUMENTS`` of this checkout in ``folder``, away from our terminal's Ctrl-C.

    ``folder``, because a ``config.yml`` in the current one would be read.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    errors = log if out == subprocess.PIPE else subprocess.STDOUT
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,  # its end tells the child that we are gone
        stdout=out,
        stderr=errors,
        start_new_session=True,
    )


def first_line(child: subprocess.Popen[bytes], what: str) -> str:
    """What it says when it has started. Raises Unavailable."""
    assert child.stdout is not None
    line = child.stdout.readline().decode().strip()
    if not line:
        raise Unavailable(f"{what} did not start: it ended with {child.wait(_STOP_S)}")
    return line


def reap(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to stop, and close our ends of its pipes."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_S)
