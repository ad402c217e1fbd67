"""Child processes that are kept running: started, listened to, started again when they die, stopped in order.

Each is forked from this process, which has loaded all they need, or executed where that cannot be (``forked``). So
there is one thread here: while it waits, it reads what they write (``outputs``).

Each child leads a session of its own, so that Ctrl-C reaches only the parent, which then stops them in its own
order. Its standard input is a pipe that is never written to (see ``parent_watch``); what it writes goes on to
the parent's standard error, line by line, under its name, in the format of the log.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distfs.errors import ConfigError, Unavailable
from distfs.local.outputs import Output, Reader
from distfs.process import descriptors, forked
from distfs.process.output import FORGOTTEN, NOT_HOME, USAGE, show
from distfs.telemetry.log_files import LogFile
from distfs.telemetry.logs import json_line, logs_json

#: Seconds before a child that died is started again: the first time, and at most.
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.25, 15.0
#: A child that lived this long died for a new reason; its pause starts over.
SETTLED_S = 30.0
_POLL_S = 0.05
#: The name under which the parent itself speaks.
PARENT = "distfs"
#: Where it is kept what the parent says; its children write files of their own.
_kept: list[LogFile] = []


class Stopped(Exception):
    """The parent was told to stop while it waited."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs: a module by ``python -m``, or ``main`` of it with the same flags; -> the exit code.

    ``read`` reads flags and settings, also those of a child's environment; -> what does the rest. Raises ConfigError.
    A child that reads them itself copies a MB of the memory that all share, for the counts of references there.
    """

    module: str
    main: Callable[[list[str]], int]
    read: Callable[[list[str], Mapping[str, str]], Callable[[], int]]


def keep_in(files: LogFile | None) -> None:
    """From now on keep what the parent says in files, too; None: in none."""
    for old in _kept:
        old.close()
    _kept[:] = [] if files is None else [files]


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
    for file in _kept if part == PARENT else ():
        file.write("".join(f"{json_line(part, message, 'up')}\n" for message in messages))
    # As they are: whoever wrote them has hidden what is to be hidden.
    show("".join(f"{line}\n" for line in lines))


class Child:
    """One process that should run. ``flags`` may be changed for its next start."""

    def __init__(
        self,
        name: str,
        program: Program,
        flags: Sequence[str],
        env: Mapping[str, str],
        reader: Reader,
        *,
        keep: Sequence[int] = (),
        grace: float = 10.0,
    ) -> None:
        """``keep``: file descriptors it inherits. ``grace``: seconds it has to stop after SIGTERM."""
        self.name, self.flags, self.grace = name, list(flags), grace
        self._program, self._env, self._reader, self._keep = program, env, reader, tuple(keep)
        self._announced: deque[str] = deque()  # its lines on standard output
        self._process: forked.Forked | subprocess.Popen[bytes] | None = None
        self._stdin = -1  # our end
        self._outputs: list[Output] = []
        self._last: deque[str] = deque(maxlen=1)
        self._started_at = self._due = 0.0
        self._pause = BACKOFF_FIRST_S
        self._work: Callable[[], int] | None = None

    def prepare(self) -> None:
        """Do what ``start`` would do first. Children that start right after each other share most of their memory:
        what this process writes to in between, those before have for themselves from then on."""
        flags = list(self.flags)
        if not forked.may_fork():
            return
        try:
            self._work = self._program.read(flags, self._env)
        except ConfigError:  # the child finds and says the same
            self._work = functools.partial(self._program.main, flags)

    def start(self) -> None:
        """Raises Unavailable when there can be no further process, or pipe to it."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                pipes = [_pipe(ours, theirs, we_write=number == 0) for number in range(3)]
                self._process = self._begin([their for _, their in pipes])
            except OSError as e:
                raise Unavailable(f"{self.name} could not be started: {descriptors.in_words(e)}") from e
            ours.pop_all()
        self._started_at = time.monotonic()
        self._stdin, stdout, stderr = (our for our, _ in pipes)
        self._outputs = [
            self._reader.add(stdout, self._announced.extend),
            self._reader.add(stderr, self._say),
        ]

    def _begin(self, streams: Sequence[int]) -> forked.Forked | subprocess.Popen[bytes]:
        argv = python(self._program.module, *self.flags)
        if self._work is None:
            self.prepare()
        work, self._work = self._work, None
        if work is not None:
            return forked.fork(work, streams, self._env, self._keep, forked.Shown(self.name, argv))
        stdin, stdout, stderr = streams
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(self._env),
            pass_fds=self._keep,
            start_new_session=True,
        )

    def _say(self, lines: Sequence[str]) -> None:
        self._last.append(lines[-1])
        say_all(lines, self.name)

    def announcement(self, stopping: threading.Event, seconds: float) -> str:
        """The next line it writes on standard output. Raises Unavailable when it dies first or takes too long."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            if stopping.is_set():
                raise Stopped
            self._reader.listen(_POLL_S)
            if self._announced:
                return self._announced.popleft()
            self.require_alive()
        raise Unavailable(f"{self.name} did not start within {seconds:.0f} s")

    def require_alive(self) -> None:
        """Raises ConfigError or Unavailable, with its last words, when it has died."""
        if self._process is not None and self._process.poll() is not None:
            self._close_pipes()
            last = self._last[-1].removeprefix(f"{self.name}: ") if self._last else self._end()
            cause = ConfigError if self._process.returncode in (USAGE, NOT_HOME) else Unavailable
            raise cause(f"{self.name} could not start: {last}")

    @property
    def stopped_well(self) -> bool:
        """It ended as one does that is told to, and nothing was said of it yet."""
        return self._process is not None and self._process.poll() == 0 and not self._due

    def let_go(self, why: str) -> None:
        """It has ended, and is not started again."""
        self._close_pipes()
        say(f"{self.name} ended {why}: it is not started again")
        self._process = None

    def keep_running(self) -> None:
        """One look: say that it died, start it again when its pause is over. Never blocks."""
        if self._process is None or self._process.poll() is None:
            return
        now = time.monotonic()
        if self._process.returncode == FORGOTTEN:
            self.let_go(f"with exit code {FORGOTTEN}")
        elif not self._due:
            self._close_pipes()
            if now - self._started_at > SETTLED_S:
                self._pause = BACKOFF_FIRST_S
            self._put_off(f"{self.name} {self._end()}")
        elif now >= self._due:
            self._due = 0.0
            try:
                self.start()
            except Unavailable as e:
                self._put_off(str(e))

    def _put_off(self, why: str) -> None:
        say(f"{why}; starting it again in {self._pause:g} s")
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, BACKOFF_MOST_S)

    def _end(self) -> str:
        code = (self._process.returncode if self._process else None) or 0
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
            self._reader.listen(_POLL_S / 5)
        self._close_pipes()
        self._process = None

    def _close_pipes(self) -> None:
        """What it wrote last is still in them."""
        for output in self._outputs:
            self._reader.finish(output)
        if self._stdin >= 0:
            os.close(self._stdin)
        self._outputs, self._stdin = [], -1


def _pipe(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack, *, we_write: bool = False
) -> tuple[int, int]:
    """-> (our end, their end); each closes with its stack."""
    reading, writing = os.pipe()
    our, their = (writing, reading) if we_write else (reading, writing)
    ours.callback(os.close, our)
    theirs.callback(os.close, their)
    return our, their


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
    of_files = {f"{name}_FILE" for name in overrides}  # what is said here is not asked of a file
    return {name: text for name, text in os.environ.items() if name not in of_files} | overrides
