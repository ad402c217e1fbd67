"""One target, fed until its time is over: ``python -m tests.fuzz.one TARGET SECONDS SEED``.

With atheris inputs are guided by what code they reach, so distfs is imported only when that watches. Without, they
are mutations of seeds and of what was kept.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

#: Address space of this process; Python, its libraries and atheris have some hundred MiB.
MOST_MEMORY = 2 << 30
FOUND = 77
#: To watch a module takes time when it is imported.
WATCHED = [
    *(
        f"distfs.{room}"
        for room in ("audit", "body", "config", "formats", "headers", "host", "problem", "routes")
    ),
    *("distfs.commands.audit", "distfs.http_app", "distfs.access", "distfs.metadb.url", "tests.fuzz"),
]


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


class Feeder:
    """Feeds a target, and ends the process at the first find, which is kept, or when the time is over."""

    def __init__(self, name: str, seconds: float) -> None:
        """``seconds``: from the first input on."""
        from tests.fuzz import guard, inputs
        from tests.fuzz.targets import TARGETS

        self.fed = TARGETS[name]
        self.pool = [*self.fed.seeds, *(path.read_bytes() for path in inputs.kept(name))]
        self._name, self._seconds, self._feed, self._keep = name, seconds, guard.feed, inputs.keep
        self._end = 0.0
        self._count = 0
        self.folder = Path(tempfile.mkdtemp(prefix="distfs-fuzz-"))  # removed at the end, however it comes
        guard.limit_memory(MOST_MEMORY)
        logging.disable()

    def __call__(self, data: bytes) -> None:
        self._end = self._end or time.monotonic() + self._seconds
        if time.monotonic() > self._end:
            self._leave(0)
        self._count += 1
        try:
            self._feed(self.fed.target, data)
        except BaseException as e:  # noqa: BLE001 - whatever it is, it is a find
            path = self._keep(self._name, data, f"found-{sha256(data).hexdigest()[:8]}")
            traceback.print_exception(e)
            print(f"found: {type(e).__name__}, kept as {path.name}: {data[:200]!r}")
            self._leave(FOUND)

    def _leave(self, code: int) -> NoReturn:
        shutil.rmtree(self.folder, ignore_errors=True)
        print(f"fed {self._count} inputs", flush=True)
        sys.stderr.flush()
        os._exit(code)  # of any other way atheris would make an error of its own


def main(name: str, seconds: float, seed: int) -> None:
    if has_atheris():
        import atheris

        with atheris.instrument_imports(include=WATCHED):
            feeder = Feeder(name, seconds)
        atheris.Setup([sys.argv[0], *_flags(feeder, seed)], feeder)
        atheris.Fuzz()
    feeder = Feeder(name, seconds)
    from tests.fuzz.inputs import mutated

    for data in feeder.pool:
        feeder(data)
    source = random.Random(seed)
    while True:
        feeder(mutated(feeder.fed, source, feeder.pool))


def _flags(feeder: Feeder, seed: int) -> list[str]:
    """libFuzzer's."""
    from tests.fuzz.inputs import MOST

    seeds, words = feeder.folder / "seeds", feeder.folder / "words"
    seeds.mkdir()
    for number, data in enumerate(feeder.pool):
        (seeds / str(number)).write_bytes(data)
    quoted = ("".join(f"\\x{octet:02x}" for octet in word) for word in feeder.fed.words)
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    return [
        f"-seed={seed}",
        f"-max_len={MOST}",
        f"-dict={words}",
        "-timeout=60",
        "-rss_limit_mb=0",
        str(seeds),
    ]


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
