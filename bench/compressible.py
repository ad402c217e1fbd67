"""Bytes of several kinds to compress, as like the real ones as a few lines make them; always the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_BLOCK = 1 << 20
_BLOCKS = 12  # made once, then used in turn with a number in front
_ROOT = Path(__file__).parent.parent
_SYLLABLES = [
    a + b for a in ("b", "d", "f", "g", "l", "m", "r", "st", "tr", "") for b in ("a", "en", "i", "or")
]


def _words(chance: random.Random, count: int) -> list[str]:
    return ["".join(chance.choices(_SYLLABLES, k=chance.choice((1, 2, 2, 3, 3, 4)))) for _ in range(count)]


def _text(chance: random.Random) -> Iterator[str]:
    """Sentences of words that are as frequent as those of a language."""
    words = _words(chance, 8000)
    weights = [1 / (rank + 3) for rank in range(len(words))]
    while True:
        yield " ".join(chance.choices(words, weights, k=chance.randint(5, 25))).capitalize() + ".\n"


def _logs(chance: random.Random) -> Iterator[str]:
    at = 1_790_000_000.0
    words = _words(chance, 50)
    while True:
        at += chance.expovariate(100)
        entry = {
            "time": round(at, 6),
            "level": chance.choices(("INFO", "DEBUG", "WARNING"), (8, 3, 1))[0],
            "request_id": f"{chance.getrandbits(64):016x}",
            "path": f"/download/{chance.choice(words)}/{chance.randrange(10**6)}",
            "status": chance.choices((200, 206, 404), (20, 3, 1))[0],
            "bytes": chance.randrange(10**7),
            "duration": round(chance.expovariate(20), 6),
        }
        yield json.dumps(entry) + "\n"


def _dump(chance: random.Random) -> Iterator[str]:
    """As COPY writes a table."""
    words = _words(chance, 3000)
    number = 0
    while True:
        number += chance.choice((1, 1, 1, 2))
        day = f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        name, city = chance.choice(words), chance.choice(words[:200])
        price = f"{chance.uniform(1, 500):.2f}"
        yield f"{number}\t{name}@{city}.example\t{city}\t{day}\t{price}\t{chance.choice('tf')}\t\\N\n"


def _source(chance: random.Random) -> Iterator[str]:
    """distfs itself."""
    files = sorted((*(_ROOT / "distfs").rglob("*.py"), *(_ROOT / "tests").rglob("*.py")))
    while True:
        yield chance.choice(files).read_text("utf-8")


def _encoded(make: Callable[[random.Random], Iterator[str]]) -> Callable[[random.Random], Iterator[bytes]]:
    return lambda chance: (text.encode() for text in make(chance))


def _random(chance: random.Random) -> Iterator[bytes]:
    while True:
        yield chance.randbytes(_BLOCK)


def _jpeg(chance: random.Random) -> Iterator[bytes]:
    """Pictures: tables in front, then what is coded by entropy, with a zero behind each 0xFF."""
    tables = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x02" + bytes(range(1, 200)) * 3
    while True:
        coded = chance.randbytes(chance.randint(60_000, 4_000_000)).replace(b"\xff", b"\xff\x00")
        yield tables + coded + b"\xff\xd9"


KINDS: Mapping[str, Callable[[random.Random], Iterator[bytes]]] = {
    "text": _encoded(_text),
    "JSON logs": _encoded(_logs),
    "database dump": _encoded(_dump),
    "source code": _encoded(_source),
    "random": _random,
    "JPEG-like": _jpeg,
}


def write_file(path: Path, kind: str, size: int) -> str:
    """``size`` bytes into ``path``, on the disk when this returns. -> sha256, hex."""
    made = _made(kind)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number, at in enumerate(range(0, size, _BLOCK)):
            block = made[number % _BLOCKS]
            block[:8] = b"%8d" % number
            piece = memoryview(block)[: min(_BLOCK, size - at)]
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _made(kind: str) -> list[bytearray]:
    source, data = KINDS[kind](random.Random(_BLOCK)), bytearray()
    while len(data) < _BLOCK * _BLOCKS:
        data += next(source)
    return [data[at : at + _BLOCK] for at in range(0, _BLOCK * _BLOCKS, _BLOCK)]
