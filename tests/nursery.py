"""A process that has loaded distfs once and forks each part that a test starts: a part takes longest to load Python's
modules, which was most of the CPU time of a test with a cluster.

A part is what it would be had it been executed: ``python -m`` runs the same module as ``__main__``, in a process of
its own, with the arguments, environment, folder, limits, streams and session that it is given, no other descriptors,
no threads, signals as the system has them, and it ends as any Python does. Only ``ps`` tells the difference. Where
that matters, or how a part starts, tests execute it (``test_up``, ``test_down``, ``test_output``, ``test_roles``,
``test_storage_server_command``); so does ``start`` itself what is no part of distfs, and where no process can be
waited for beside others.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

_PARTS = ("distfs.storage_server",)

#: What may be forked. Those of tests change classes of distfs, which does not mind when they were loaded.
MODULES = ("distfs", *_PARTS, "tests.faults.dying", "tests.faults.full_node", "tests.mirror")

_LONGEST_MESSAGE = 1 << 18
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
PIPE = subprocess.PIPE

Stream = int | IO[Any] | None


class Part:
    """A part that was forked; to those who start it, as a ``subprocess.Popen`` of text."""

    def __init__(self, pid: int, ended: int, stdin: int, stdout: int, stderr: int) -> None:
        """``ended``: a descriptor from which its exit code can be read. The rest: our ends of pipes, or -1."""
        self.pid, self.returncode = pid, None
        self._ended = os.fdopen(ended, "rb", buffering=0)
        self.stdin: IO[str] | None = os.fdopen(stdin, "w") if stdin >= 0 else None
        self.stdout: IO[str] | None = os.fdopen(stdout) if stdout >= 0 else None
        self.stderr: IO[str] | None = os.fdopen(stderr) if stderr >= 0 else None

    returncode: int | None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"part {self.pid}", timeout or 0)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._ended, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                told = self._ended.read(16)
                assert told, f"the nursery has ended; nobody knows what became of part {self.pid}"
                self.returncode = int(told)
                self._ended.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks, from where its users are."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for who runs the tests: they stop what they have started
            )

    def fork(self, words: Sequence[str], cwd: Path, environ: Mapping[str, str], fds: Sequence[int]) -> int:
        """-> the process id. ``fds``: where its end is told, and its standard streams."""
        limits = [(number, *resource.getrlimit(number)) for number in _LIMITS]
        message = json.dumps([list(words), str(cwd), dict(environ), limits]).encode()
        with self._lock:
            socket.send_fds(self._socket, [message], fds)
            told = self._socket.recv(_LONGEST_MESSAGE)
        assert told.isdigit(), f"the nursery forks nothing: {told.decode()}"
        return int(told)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_making = threading.Lock()


def _of_python(environ: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """What of an environment is read but once, when Python starts."""
    return frozenset(each for each in environ.items() if each[0].startswith(("PYTHON", "LC_", "LANG", "LD_")))


@cache
def _nursery(of_python: frozenset[tuple[str, str]]) -> Nursery:
    """The one of this process that was started so; it ends with this process."""
    nursery = Nursery({"PATH": os.environ.get("PATH", ""), **dict(of_python)})
    atexit.register(nursery.close)
    return nursery


def start(
    argv: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
) -> Part | subprocess.Popen[str]:
    """Start ``python -m MODULE ...`` in a session of its own: forked if it can be, else executed."""
    may_be = hasattr(os, "pidfd_open") and list(argv[:2]) == [sys.executable, "-m"] and argv[2] in MODULES
    if not may_be:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=dict(environ),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            text=True,
        )
    with _making:
        nursery = _nursery(_of_python(environ))
    theirs, ours = [], []
    opened: list[int] = []
    for number, stream in enumerate((PIPE, stdin, stdout, stderr)):
        if stream == PIPE:
            reading, writing = os.pipe()
            keep, give = (writing, reading) if number == 1 else (reading, writing)
            opened.append(give)
        else:
            keep, give = -1, _descriptor(stream, number - 1)
        ours.append(keep)
        theirs.append(give)
    try:
        pid = nursery.fork(argv[2:], cwd, environ, theirs)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return Part(pid, *ours)


def _descriptor(stream: Stream, default: int) -> int:
    if stream is None:
        return default
    return stream if isinstance(stream, int) else stream.fileno()


def run(
    argv: Sequence[str], cwd: Path, environ: Mapping[str, str], timeout: float, stdout: Stream = PIPE
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of a command whose output is captured, or goes elsewhere. Raises TimeoutExpired."""
    part = start(argv, cwd, environ, stdout=stdout, stderr=PIPE)
    late = threading.Event()

    def end() -> None:
        late.set()
        part.kill()

    timer = threading.Timer(timeout, end)
    timer.start()
    told: list[str] = []
    assert part.stderr is not None
    with part.stdout or contextlib.nullcontext() as output, part.stderr as errors:
        reader = threading.Thread(target=lambda: told.append(errors.read()))
        reader.start()
        try:
            out = output.read() if output else ""
            reader.join()
            code = part.wait()
        except BaseException:
            part.kill()
            raise
        finally:
            timer.cancel()
            timer.join()
    if late.is_set():
        raise subprocess.TimeoutExpired(list(argv), timeout, out, told[0])
    return subprocess.CompletedProcess(list(argv), code, out, told[0])


# --- inside the process that forks ------------------------------------------------------------------------


def _serve(asked: socket.socket) -> list[str] | None:
    """Fork whatever is asked for, and tell its end to who asked, until nobody can ask any more. -> None then; and in
    each process that was forked, the words after ``python -m``."""
    running: dict[
        int, tuple[int, int]
    ] = {}  # by descriptor of the process: its id, and where its end is told
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                poll.unregister(descriptor)
                pid, tell = running.pop(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(tell, code)
                continue
            message, fds, *_ = socket.recv_fds(asked, _LONGEST_MESSAGE, 4)
            if not message:
                return None
            if (pid := os.fork()) == 0:
                asked.detach()  # its descriptor is closed, and soon another's
                return _become(json.loads(message), fds[1:])
            for fd in fds[1:]:
                os.close(fd)
            descriptor = os.pidfd_open(pid)
            running[descriptor] = pid, fds[0]
            poll.register(descriptor, select.POLLIN)
            asked.send(b"%d" % pid)


def _tell(where: int, code: int) -> None:
    try:
        os.write(where, b"%d" % code)
    except BrokenPipeError:
        pass  # who started it does not want to know
    os.close(where)


def _become(message: list[Any], streams: list[int]) -> list[str]:
    """Make this process what it would be had it been executed; -> the words after ``python -m``."""
    words, cwd, environ, limits = message
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 16)
    _open_streams()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv = ["-m", *words[1:]]
    sys.orig_argv = [sys.executable, "-m", *words]
    for number, soft, hard in limits:
        if resource.getrlimit(number) != (soft, hard):
            resource.setrlimit(number, (soft, hard))
    return [str(word) for word in words]


def _open_streams() -> None:
    """As Python does when it starts; those of before know what was behind the same descriptors before."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        raw = open(number, "wb" if number else "rb", 0 if before.write_through else -1, closefd=False)  # noqa: SIM115
        as_before = {
            key: getattr(before, key) for key in ("encoding", "errors", "line_buffering", "write_through")
        }
        setattr(sys, name, stream := io.TextIOWrapper(raw, newline="\n", **as_before))
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    for module in ("distfs.cli", *_PARTS):
        importlib.import_module(module)
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # or the first collection of each process would copy every page
    if words := _serve(socket.socket(fileno=int(sys.argv[1]))):
        for module in _PARTS:
            del sys.modules[module]  # what it needs stays: it is loaded again, as __main__
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
