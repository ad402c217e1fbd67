"""A process that is forked from this one and becomes another program of ours, as if it had been executed.

It has the modules that are loaded here, in the same memory, and needs no time to load them. What an executed one
would not have it has not: it leads a session of its own, with streams, descriptors, environment and signals as it is
given them; nothing of what runs here goes on in it, and nothing of it comes back.

Python is forked safely by a process of one thread only: another's lock would stay locked for ever. So whoever forks
has no others, and executes what it could not fork (``may_fork``).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from distfs.process.output import BUG, FAILED
from distfs.process.title import show_as

_THREADS, _DESCRIPTORS = "/proc/self/task", "/proc/self/fd"


def may_fork() -> bool:
    """Whether this is Linux (elsewhere system libraries do not stand it), and this thread the only one."""
    try:
        return sys.platform == "linux" and len(os.listdir(_THREADS)) == 1 and bool(os.listdir(_DESCRIPTORS))
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Shown:
    """What ``top`` and ``ps`` show of a process."""

    name: str
    argv: Sequence[str]


def ended(pid: int, options: int) -> int | None:
    """-> the exit code of a child, or a signal's number, negative; None: it runs. ``options``: as of waitpid(2)."""
    try:
        found, status = os.waitpid(pid, options)
    except ChildProcessError:  # who started this process ignores SIGCHLD: it has ended, nobody knows how
        return FAILED
    return os.waitstatus_to_exitcode(status) if found else None


class Forked:
    """A child that was forked; to whoever waits for it as a ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """-> its exit code, or a signal's number, negative; None: it runs."""
        self._look(os.WNOHANG)
        return self.returncode

    def wait(self) -> None:
        self._look(0)

    def _look(self, options: int) -> None:
        if self.returncode is None:
            self.returncode = ended(self.pid, options)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until it is waited for its number is nobody else's
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    work: Callable[[], int],
    streams: Sequence[int],
    environ: Mapping[str, str],
    keep: Sequence[int],
    shown: Shown,
) -> Forked:
    """A child that does ``work`` and ends with the exit code it gives. Raises OSError when there can be none.

    ``streams``: its standard input, output and error. ``keep``: what else of this process's descriptors it has.
    """
    gc.collect()
    _give_back()
    gc.freeze()  # or whoever looks for garbage there writes to each page, and shares none
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the child can heed them
    try:
        pid = os.fork()
        if pid == 0:

            def become() -> int:
                _take(streams, keep)
                os.environ.clear()
                os.environ.update(environ)
                show_as(shown.name, shown.argv)
                _forget_handlers()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                return work()

            _live(become)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Forked(pid)


def _give_back() -> None:
    """What the C library keeps for later, and each child would have, too (malloc_trim(3): glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _live(work: Callable[[], int]) -> NoReturn:
    """A child's whole life. What is below on the stack is the parent's: none of it may be gone back to."""
    code = BUG
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - the process's outermost edge
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            logging.shutdown()
            sys.stdout.flush()
        os._exit(code)


def _take(streams: Sequence[int], keep: Sequence[int]) -> None:
    os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for entry in os.listdir(_DESCRIPTORS):
        if (descriptor := int(entry)) > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # by which the list was read
                os.close(descriptor)
    for number, (stream, mode) in enumerate((("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb"))):
        fresh = _text(number, mode, getattr(sys, f"__{stream}__"))
        setattr(sys, stream, fresh)
        setattr(sys, f"__{stream}__", fresh)


def _text(number: int, mode: str, before: Any) -> io.TextIOWrapper:
    """As Python makes it when it starts, of the encoding it was told then."""
    raw = open(number, mode, closefd=False)  # noqa: SIM115 - for as long as the process
    return io.TextIOWrapper(
        raw, getattr(before, "encoding", None), "backslashreplace" if number == 2 else None
    )


def _forget_handlers() -> None:
    """Each signal as the system has it, but for what was ignored: execve(2) does that; SIGINT as Python has it."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
