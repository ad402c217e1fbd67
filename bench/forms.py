"""Forms taken apart and hashed, as the service does it, whose files' bytes are as hard as can be to look through."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass

from bench.report import Options, spread, table
from distfs.body.multipart import FormLimits, MultipartReader
from distfs.config.settings import MIB
from distfs.errors import TooSlow

SIZE = 32 * MIB
VIEW = MIB
#: No bytes may take so many times longer than random ones.
WORST = 3.0

_CURLS = b"------------------------aBcdEf0123456789"
_DELIMITER = b"\r\n--" + _CURLS
_KINDS: dict[str, tuple[bytes, bytes]] = {
    "random": (os.urandom(MIB), _CURLS),
    "CR": (b"\r", _CURLS),
    "CR LF": (b"\r\n", _CURLS),
    "CR LF - -": (b"\r\n--", _CURLS),
    "all but the boundary's last byte": (_DELIMITER[:-1], _CURLS),
    "the boundary with another last byte": (_DELIMITER[:-1] + b"x", _CURLS),
    "the boundary's end": (_DELIMITER[-20:], _CURLS),
    "dashes": (b"-", _CURLS),
    "dashes, as the boundary": (b"-", b"-" * 70),
}


@dataclass(slots=True)
class Form:
    name: str
    seconds: list[float]  # of each turn


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._data) - self._at)
        view[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


def run(options: Options, cleanup: ExitStack) -> list[Form]:
    """Seconds for a form of 32 MiB, in turns, the best of which counts. Raises TooSlow when a kind is held up."""
    forms = [Form(name, []) for name in _KINDS]
    for _ in range(max(3, options.runs)):
        for form in forms:
            form.seconds.append(_take_apart(*_KINDS[form.name]))
    random = min(forms[0].seconds)
    print("\na form of 32 MiB; medians, least and most")
    rows = [["", "ms", "least, by that of random"]]
    for form in forms:
        times = [seconds * 1e3 for seconds in form.seconds]
        rows.append([form.name, spread(times, 1), f"{min(form.seconds) / random:.2f}"])
    table(rows)
    slow = [f.name for f in forms if min(f.seconds) > WORST * random]
    if slow:
        raise TooSlow(
            f"a form takes more than {WORST:g} times as long as one of random bytes: {', '.join(slow)}"
        )
    return forms


def _take_apart(piece: bytes, boundary: bytes) -> float:
    data = (piece * (SIZE // len(piece) + 1))[:SIZE]
    head = b'Content-Disposition: form-data; name="file"; filename="x"'
    body = _Body(b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (boundary, head, data, boundary))
    reader = MultipartReader(body, boundary, FormLimits(SIZE))
    reader.next_part()
    view, sha = memoryview(bytearray(VIEW)), hashlib.sha256()
    began = time.perf_counter()
    while count := reader.readinto(view):
        sha.update(view[:count])
    seconds = time.perf_counter() - began
    assert sha.digest() == hashlib.sha256(data).digest()
    return seconds
