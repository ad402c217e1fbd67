"""Child processes that are kept running: started, listened to, started again when they die, stopped in order.

Each child leads a session of its own, so that Ctrl-C reaches only the parent, which then stops them in its own
order. Its standard input is a pipe that is never written to (see ``parent_watch``); what it writes goes on to
the parent's standard error, line by line, under its name, in the format of the log.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from distfs.errors import Busy, ConfigError, Unavailable
from distfs.process.output import FORGOTTEN, NOT_HOME, USAGE, show
from distfs.process.threads import start
from distfs.telemetry import json_line, logs_json

#: Seconds before a child that died is started again: the first time, and at most.
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.25, 15.0
#: A child that lived this long died for a new reason; its pause starts over.
SETTLED_S = 30.0
_POLL_S = 0.05
#: Bytes read from a child at once; and of a line, the rest is another.
_READ_MOST, _LINE_MOST = 64 << 10, 1 << 20
#: The name under which the parent itself speaks.
PARENT = "distfs"


class Stopped(Exception):
    """The parent was told to stop while it waited."""


def say(message: str, part: str = PARENT) -> None:
    """A line of the parent's own, or of a child, on standard error; one that is gone is no reason to end."""
    say_all([message], part)


def say_all(messages: Sequence[str], part: str) -> None:
    """The same for several lines, as one piece."""
    if logs_json():
        lines = [json_line(part, message) for message in messages]
    else:
        before = f"{part}: " if part == PARENT else f"{part:8} | "
        lines = [before + message for message in messages]
    # As they are: whoever wrote them has hidden what is to be hidden.
    show("".join(f"{line}\n" for line in lines))


class Child:
    """One process that should run. ``argv`` may be changed for its next start."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        keep: Sequence[int] = (),
        grace: float = 10.0,
    ) -> None:
        """``keep``: file descriptors it inherits. ``grace``: seconds it has to stop after SIGTERM."""
        self.name, self.argv, self.grace = name, list(argv), grace
        self.announced: queue.Queue[str] = queue.Queue()  # its lines on standard output
        self._env, self._keep = env, tuple(keep)
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._last: deque[str] = deque(maxlen=1)
        self._started_at = self._due = 0.0
        self._pause = BACKOFF_FIRST_S

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(self._env),
            pass_fds=self._keep,
            start_new_session=True,
            bufsize=0,
        )
        self._started_at = time.monotonic()
        self._readers = []
        try:
            for stream, to_parent in ((self._process.stdout, False), (self._process.stderr, True)):
                self._readers.append(start(self._read, f"{self.name}'s output", stream, to_parent))
        except Busy:
            self._process.kill()  # nobody reads what it writes: it would wait for that for ever
            raise

    def _read(self, stream: IO[bytes], to_parent: bool) -> None:
        with stream:
            for lines in _lines(stream):
                if to_parent:
                    self._last.append(lines[-1])
                    say_all(lines, self.name)
                else:
                    for line in lines:
                        self.announced.put(line)

    def announcement(self, stopping: threading.Event, seconds: float) -> str:
        """The next line it writes on standard output. Raises Unavailable when it dies first or takes too long."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            if stopping.is_set():
                raise Stopped
            with contextlib.suppress(queue.Empty):
                return self.announced.get(timeout=_POLL_S)
            self.require_alive()
        raise Unavailable(f"{self.name} did not start within {seconds:.0f} s")

    def require_alive(self) -> None:
        """Raises ConfigError or Unavailable, with its last words, when it has died."""
        if self._process is not None and self._process.poll() is not None:
            self._join_readers()
            last = self._last[-1].removeprefix(f"{self.name}: ") if self._last else self._end()
            cause = ConfigError if self._process.returncode in (USAGE, NOT_HOME) else Unavailable
            raise cause(f"{self.name} could not start: {last}")

    @property
    def stopped_well(self) -> bool:
        """It ended as one does that is told to, and nothing was said of it yet."""
        return self._process is not None and self._process.poll() == 0 and not self._due

    def let_go(self, why: str) -> None:
        """It has ended, and is not started again."""
        say(f"{self.name} ended {why}: it is not started again")
        self._close_pipes()
        self._process = None

    def keep_running(self) -> None:
        """One look: say that it died, start it again when its pause is over. Never blocks."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        if self._process.returncode == FORGOTTEN:
            self.let_go(f"with exit code {FORGOTTEN}")
        elif not self._due:
            if now - self._started_at > SETTLED_S:
                self._pause = BACKOFF_FIRST_S
            self._put_off(self._end())
        elif now >= self._due:
            self._due = 0.0
            self._close_pipes()
            try:
                self.start()
            except (OSError, Busy) as e:  # no memory for a process, no descriptors, no threads
                self._put_off(f"could not be started: {e}")

    def _put_off(self, why: str) -> None:
        say(f"{self.name} {why}; starting it again in {self._pause:g} s")
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, BACKOFF_MOST_S)

    def _end(self) -> str:
        code = self._process.returncode if self._process else 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on, to nobody while it does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait_gone(self, hurry: threading.Event) -> None:
        if self._process is None:
            return
        give_up = time.monotonic() + self.grace
        while self._process.poll() is None:
            if hurry.is_set() or time.monotonic() > give_up:
                say(f"{self.name} does not stop by itself; ending it")
                self._process.kill()
                self._process.wait()
            time.sleep(_POLL_S / 5)
        self._join_readers()
        self._close_pipes()
        self._process = None

    def _join_readers(self) -> None:
        """What it wrote last is still in the pipes. A grandchild may hold them open: that is not waited for."""
        for reader in self._readers:
            reader.join(1.0)

    def _close_pipes(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _lines(stream: IO[bytes]) -> Iterator[list[str]]:
    """What comes, a list of whole lines at a time: those that came together."""
    rest = b""
    while data := stream.read(_READ_MOST):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > _LINE_MOST:
            whole.append(rest)
            rest = b""
        if whole:
            yield [line.decode(errors="replace").rstrip() for line in whole]
    if rest:
        yield [rest.decode(errors="replace").rstrip()]


def stop_all(groups: Sequence[Sequence[Child]], hurry: threading.Event) -> None:
    """Stop group after group; within a group all at once."""
    for group in groups:
        for child in group:
            child.ask_to_stop()
        for child in group:
            child.wait_gone(hurry)


def python(module: str, *args: str) -> list[str]:
    """The command line of a module of ours under the Python that runs this one."""
    return [sys.executable, "-m", module, *args]


def environment(**overrides: str) -> dict[str, str]:
    return {**os.environ, **overrides}
