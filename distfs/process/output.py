"""What distfs says on standard output and standard error, and with which exit codes its commands end.

Output is I/O that can fail: a full disk, a closed descriptor, a pipe whose reader went away, a terminal that hung up.
What a command tells is its result, so one that cannot be written ends it, with a code of its own. What a service or
a node says is for whoever looks: nobody may, and it neither ends nor waits for that.

Nothing else in distfs writes to either; libraries find ``sys.stderr`` made harmless by ``open_streams``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

from distfs.errors import (
    Busy,
    Cancelled,
    ConfigError,
    DistfsError,
    NodeForgotten,
    NotHome,
    OtherSettings,
    OutcomeUnknown,
    Unavailable,
)
from distfs.process import descriptors
from distfs.process.private import keep_private
from distfs.process.redact import redacted, redacted_word, visible

#: Exit codes of every command and part. 70 is sysexits.h's, 130 the shell's.
DONE, FAILED, USAGE, NOT_TOLD, OUTPUT_LOST, NOT_HOME, FORGOTTEN = range(7)
BUG, INTERRUPTED = 70, 130

#: How the ``--help`` of each ends; its own meaning of 0 and 1 come before it.
COMMON_CODES = (
    "2: a flag or a setting is wrong; 3: MetaDB, a node or a service cannot be asked; 4: standard output cannot be "
    "written; 70: a bug of distfs; 130: interrupted"
)

#: Of what runs until it is told to stop.
PART_CODES = (
    "exit code: 0: it was told to stop, and did; 1: it could not go on, for the reason on standard error; "
    "2: a flag or a setting is wrong, and starting it again is of no use; 3: MetaDB, or another part, does not "
    "answer; 5: the data folder is no node's, or not on its disk: mount it, or make it with `distfs node init`; "
    "6: the node was forgotten, and starting it again is of no use; 70: a bug of distfs. It goes on whether or not "
    "anybody reads what it says"
)

#: Who reads standard error more slowly than it is written is waited for once, for so long.
_PATIENCE_S = 1.0


class OutputLost(Exception):
    """Standard output took not all of what a command told, for the reason that this is."""


def tell(text: str) -> None:
    """What a command has to say: ``text`` and a line break on standard output. Raises OutputLost."""
    if sys.stdout is None:
        raise OutputLost("it is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError) as e:
        _drop_what_is_left()
        raise OutputLost(descriptors.in_words(e) if isinstance(e, OSError) else str(e)) from e


def announce(text: str) -> None:
    """What a service has to say when it has started: as ``tell``, but it goes on whatever becomes of it."""
    try:
        out = sys.__stdout__
        if out is not None and out is sys.stdout and not _takes_more(out.fileno()):
            raise OutputLost("nobody reads it")
        tell(text)
    except OutputLost as e:
        complain(f"distfs: standard output could not be written, which changes nothing: {e}")


def complain(line: str) -> None:
    """A line on standard error, where somebody may read it; no URL in it shows its password, and it is one line,
    whatever is in it."""
    show(f"{visible(redacted(line))}\n")


def warner(name: str, *, of_parent: bool = False) -> Callable[[str], None]:
    """Tells what a command's configuration is warned of. ``of_parent``: nobody, since who started it was told."""

    def warn(line: str) -> None:
        if not of_parent:
            complain(f"{name}: {line}")

    return warn


def show(text: str) -> None:
    """``text`` on standard error as it is, such as a line that is written over and over."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def is_watched() -> bool:
    """Whether standard error is a terminal."""
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):
        return False


def command(name: str, act: Callable[[], int]) -> int:
    """Run what a command or a part does; -> its exit code. Whatever ends it is at most one line on standard error,
    unless it is a bug of ours, whose traceback is what helps."""
    open_streams()
    keep_private()
    _stacks_at_sigusr1()
    try:
        return _act(act)
    except OutputLost as e:
        complain(f"{name}: not all could be written to standard output: {e}")
        return OUTPUT_LOST
    except KeyboardInterrupt:
        complain("")
        return INTERRUPTED
    except DistfsError as e:
        if type(e) is DistfsError:
            traceback.print_exc()
            return BUG
        complain(f"{name}: {' '.join(str(e).split())}")
        return code_of(e)
    except Exception:  # noqa: BLE001 - the outermost edge: Python's own exit code is 1, which means something here
        traceback.print_exc()
        return BUG


def _stacks_at_sigusr1() -> None:
    """From now on SIGUSR1 has the stacks of all threads written to standard error, whatever they wait for: what to
    send along with "it hangs". Written by C, so it needs no lock of the interpreter's."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is no file
        faulthandler.register(signal.SIGUSR1, all_threads=True)


class Parser(argparse.ArgumentParser):
    """argparse's own does not notice when nobody could be told what ``--help`` says, and repeats what was wrong as
    it was given, such as a URL with its password after a flag that was misspelt."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(map(redacted_word, unknown))}")
        return given

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """argparse's own takes an optional word only where it stands beside the others: no flag may be between."""
        given, unknown = super().parse_known_args(args, namespace)
        for action in self._get_positional_actions():
            late = action.nargs == argparse.OPTIONAL and getattr(given, action.dest) is action.default
            if late and unknown and not unknown[0].startswith("-"):
                try:
                    setattr(given, action.dest, self._get_value(action, unknown.pop(0)))
                except argparse.ArgumentError as e:
                    self.error(str(e))
        return given, unknown

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stderr:
            show(message)
        else:
            tell(message.removesuffix("\n"))


def _act(act: Callable[[], int]) -> int:
    try:
        return act()
    except SystemExit as e:  # argparse has written its help, or what is wrong with a flag
        return e.code if isinstance(e.code, int) else FAILED


def code_of(error: DistfsError) -> int:
    """With which code a command ends that an error ends."""
    if isinstance(error, NotHome):
        return NOT_HOME
    if isinstance(error, NodeForgotten):
        return FORGOTTEN
    if isinstance(error, ConfigError | OtherSettings):
        return USAGE
    later = isinstance(error, Unavailable | Busy | Cancelled | OutcomeUnknown)
    return NOT_TOLD if later else FAILED


def open_streams() -> None:
    """Make standard output and error safe to use: once, before anything else is opened.

    A descriptor that is closed would be given to the next file or socket, and what is meant for a terminal be written
    there. Text that a stream's encoding cannot hold is escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, so this one
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and not isinstance(getattr(sys.stderr, "buffer", None), _Unread):
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        raw = cast(Any, _Unread(2))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)


class _Unread(io.RawIOBase):
    """A descriptor that may be written whatever is at its other end: what cannot be written is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stuck = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        size = left.nbytes
        with contextlib.suppress(OSError):
            # A pipe or a terminal that may be written takes so much at once without a wait.
            while left and _takes_more(self._descriptor, 0 if self._stuck else _PATIENCE_S):
                self._stuck = False
                left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]
            self._stuck = bool(left)
        return size


def _takes_more(descriptor: int, seconds: float = _PATIENCE_S) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _drop_what_is_left() -> None:
    """Python writes what is buffered once more when it ends, and would fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
