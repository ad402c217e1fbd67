"""What this process spends its time with, by py-spy, which looks at it from outside; for administrators."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from distfs.deadline import Deadline
from distfs.errors import Busy, Refused, Unavailable, Unsupported
from distfs.process.descriptors import in_words
from distfs.routes.messages import Answer, Request
from distfs.services import Services

USUAL_S, MOST_S, _GRACE_S = 30, 60, 20
#: Format as it is asked for -> as py-spy calls it, the file's name, its type.
_FORMATS = {
    "svg": ("flamegraph", "profile.svg", "image/svg+xml"),
    "speedscope": ("speedscope", "profile.speedscope.json", "application/json"),
}
_one = threading.Lock()
_REMEDY = (
    "give distfs the right SYS_PTRACE (a container: that capability; systemd: "
    "AmbientCapabilities=CAP_SYS_PTRACE), or set kernel.yama.ptrace_scope=0"
)
_PR_SET_PTRACER = 0x59616D61


def get_profile(services: Services, request: Request) -> Answer:
    """``?seconds=30&format=svg``, or speedscope: where the threads of the process that is asked were, so many seconds
    long. One at a time. Raises Unsupported, Busy, Refused, Unavailable."""
    asked, wanted = request.argument("seconds") or str(USUAL_S), request.argument("format") or "svg"
    if not (asked.isascii() and asked.isdigit() and len(asked) < 3 and 1 <= int(asked) <= MOST_S):
        raise Refused(f"seconds must be 1 to {MOST_S}")
    if wanted not in _FORMATS:
        raise Refused(f"format must be one of {', '.join(_FORMATS)}")
    form, name, kind = _FORMATS[wanted]
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists():
        raise Unsupported("a profile needs an extra: pip install 'distfs[profile]'")
    if not _one.acquire(blocking=False):
        raise Busy("a profile is being made: ask again when it is done")
    try:
        deadline = Deadline(int(asked) + _GRACE_S, scope=request.hang_up)
        data = _recorded(program, int(asked), form, deadline)
    finally:
        _one.release()
    headers = {
        "Content-Type": kind,
        "Content-Length": str(len(data)),
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return Answer(200, headers, [data])


def _recorded(program: Path, seconds: int, form: str, deadline: Deadline) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile"
        # It reads our memory while we go on: `nonblocking`.
        command = [str(program), "record", "--nonblocking", "--threads", "--pid", str(os.getpid())]
        command += ["--duration", str(seconds), "--format", form, "--output", str(out)]
        nothing = subprocess.DEVNULL
        running = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=subprocess.PIPE)
        _let_look(running.pid)
        unwatch = deadline.watch(running.kill)
        try:
            _, said = running.communicate(timeout=deadline.remaining("making a profile"))
        except subprocess.TimeoutExpired:
            said = b"it did not come to an end"
        finally:
            unwatch()
            running.kill()
            running.wait()
            _let_look(0)
        deadline.check_cancelled()
        try:
            return out.read_bytes()
        except OSError as e:
            raise _in_vain(said.decode("utf-8", "replace"), in_words(e)) from e


def _let_look(pid: int) -> None:
    """Where a process may look at its children alone, this one may look at us, too; 0: nobody any more."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, pid, 0, 0, 0)


def _in_vain(said: str, otherwise: str) -> Unavailable:
    last = said.strip().splitlines()[-1] if said.strip() else otherwise
    if "ermission" in said or "not permitted" in said:
        why = "py-spy may not read this process"
        return Unavailable(f"{why} ({last}): {_REMEDY}", public=f"{why}: {_REMEDY}")
    return Unavailable(f"py-spy made no profile: {last}", public="py-spy made no profile: the log tells why")
