"""curl, the client everything is measured with: its own process, as a user's is."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import noise
from distfs.errors import Corrupt, Unavailable

_COMMAND = ["curl", "--silent", "--show-error", "--fail-with-body"]
_BLOCK = 1 << 20
_PIPE = 1 << 20  # the most an unprivileged process may ask for
_BASE_S, _SLOWEST = 60, 5_000_000  # a transfer's bound: seconds + bytes / (bytes a second)


@dataclass(frozen=True, slots=True)
class Content:
    """What a transfer carried."""

    size: int  # bytes
    sha256: str

    def expect(self, wanted: Content, what: str) -> None:
        """Raises Corrupt when these are not the ``wanted`` bytes."""
        if self != wanted:
            raise Corrupt(f"{what}: {self.size} bytes with sha256 {self.sha256}, wanted {wanted}")


def put(url: str, source: Path) -> str:
    """``curl -T FILE``: a raw body with Content-Length -> the answer's body. Raises Unavailable."""
    return _run(["--upload-file", str(source), url], source.stat().st_size)


def post_form(url: str, source: Path) -> str:
    """``curl -F file=@FILE``: a form -> the answer's body. Raises Unavailable."""
    return _run(["--form", f"file=@{source}", url], source.stat().st_size)


def discard(url: str, size: int) -> None:
    """Download about ``size`` bytes to nowhere. Raises Unavailable."""
    _run(["--output", "/dev/null", url], size)


def put_many(url: str, source: Path, count: int, connections: int) -> list[str]:
    """The same file ``count`` times by one curl, so many at once -> the answers' lines. Raises Unavailable."""
    each = f'upload-file = "{source}"\nurl = "{url}"\n'
    answers = _many(each * count, source.stat().st_size * count, connections).split()
    if len(answers) != count:
        raise Unavailable(f"curl sent {count} files to {url} and had {len(answers)} answers")
    return answers


def discard_many(urls: Sequence[str], size: int, connections: int) -> None:
    """Download them, about ``size`` bytes each, to nowhere, by one curl, so many at once. Raises Unavailable."""
    listed = "".join(f'url = "{url}"\noutput = "/dev/null"\n' for url in urls)
    _many(listed, size * len(urls), connections)


def _many(config: str, size: int, connections: int) -> str:
    at_once = ["--parallel", "--parallel-immediate", "--parallel-max", str(connections), "--fail-early"]
    with _popen([*at_once, "--config", "-"], size, stdin=subprocess.PIPE) as curl:
        answer, complaint = curl.communicate(config.encode())
        return _answer(curl.returncode, answer, complaint)


def put_stream(url: str, size: int) -> tuple[str, Content]:
    """``... | curl -T -``: chunked noise -> the answer's body, and what was sent. Raises Unavailable."""
    digest = hashlib.sha256()
    with _popen(["--upload-file", "-", url], size, stdin=subprocess.PIPE) as curl:
        pipe = _wide(curl.stdin)
        with contextlib.suppress(BrokenPipeError):  # curl gave up; its exit status and words say why
            for block in noise.blocks(size):
                pipe.write(block)
                digest.update(block)
        answer, complaint = curl.communicate()
        return _answer(curl.returncode, answer, complaint), Content(size, digest.hexdigest())


def fetch(url: str, size: int) -> Content:
    """Download about ``size`` bytes -> what came. Raises Unavailable."""
    digest, count = hashlib.sha256(), 0
    view = memoryview(bytearray(_BLOCK))
    with _popen([url], size) as curl:
        pipe = _wide(curl.stdout)
        while got := pipe.readinto(view):
            digest.update(view[:got])
            count += got
        _, complaint = curl.communicate()
        _answer(curl.returncode, b"", complaint)
    return Content(count, digest.hexdigest())


def _run(arguments: list[str], size: int) -> str:
    with _popen(arguments, size) as curl:
        answer, complaint = curl.communicate()
        return _answer(curl.returncode, answer, complaint)


@contextmanager
def _popen(
    arguments: list[str], size: int, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    bound = ["--max-time", str(_BASE_S + size // _SLOWEST)]
    with subprocess.Popen(
        [*_COMMAND, *bound, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as curl:
        try:
            yield curl
        finally:
            curl.kill()  # nothing to an ended one


def _wide(pipe: object) -> io.FileIO:
    """A pipe with room for a block, so that the two processes do not take turns at 64 KiB."""
    assert isinstance(pipe, io.FileIO)  # what Popen gives with bufsize 0
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    return pipe


def _answer(status: int, answer: bytes, complaint: bytes) -> str:
    text = answer.decode(errors="replace").strip()
    if status:
        raise Unavailable(
            f"curl failed ({status}): {complaint.decode(errors='replace').strip()} {text}".rstrip()
        )
    return text
