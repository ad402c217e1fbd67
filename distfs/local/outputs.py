"""What children write, line by line, read by the one thread there is while it waits for something."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Bytes read at once; and of a line, the rest is another.
_READ_MOST, _LINE_MOST = 64 << 10, 1 << 20
#: So much a pipe holds, where that can be chosen, while nobody waits: some seconds of a busy service's log.
_PIPE_SIZE = 1 << 20

Told = Callable[[list[str]], object]


@dataclass(slots=True, eq=False)
class Output:
    """The reading end of one pipe. ``told``: gets whole lines, those that came together at once."""

    pipe: int  # -1: it has ended
    told: Told
    rest: bytes = b""  # of a line

    def take(self, data: bytes) -> None:
        *whole, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LINE_MOST:
            whole.append(self.rest)
            self.rest = b""
        if whole:
            self.told([_text(line) for line in whole])

    def end(self) -> None:
        if self.rest:
            self.told([_text(self.rest)])


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()


class Reader:
    """Reads those that have not ended."""

    def __init__(self) -> None:
        self._outputs: dict[int, Output] = {}  # by pipe
        self._poll = select.poll()

    def add(self, pipe: int, told: Told) -> Output:
        """Read it from now on, and close it at its end."""
        os.set_blocking(pipe, False)
        with contextlib.suppress(
            OSError, AttributeError
        ):  # all of them together may hold so much, or not Linux
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._poll.register(pipe, select.POLLIN)
        output = self._outputs[pipe] = Output(pipe, told)
        return output

    def listen(self, seconds: float) -> None:
        """Wait for what comes next, so long at most, and hand it on."""
        for pipe, _ in self._poll.poll(seconds * 1000):
            self._read(self._outputs[pipe])

    def pause(self, seconds: float) -> None:
        """Hand on all that comes within so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.listen(left)

    def finish(self, output: Output) -> None:
        """Hand on what is in it, and close it, though a child's child may still hold its other end, and write."""
        for _ in range(_PIPE_SIZE // _READ_MOST):
            if output.pipe < 0 or not self._read(output):
                break
        self._end(output)

    def _read(self, output: Output) -> bool:
        """-> whether there may be more in it now."""
        try:
            data = os.read(output.pipe, _READ_MOST)
        except BlockingIOError:
            return False
        if not data:
            self._end(output)
            return False
        output.take(data)
        return True

    def _end(self, output: Output) -> None:
        if output.pipe >= 0:
            del self._outputs[output.pipe]
            self._poll.unregister(output.pipe)
            os.close(output.pipe)
            output.pipe = -1  # soon another's
            output.end()
