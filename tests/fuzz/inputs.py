"""Inputs: those that were kept, and others made of a target's seeds and words, by hypothesis or from a seed."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.targets import Fed

CORPUS = Path(__file__).parent / "corpus"
MOST = 4096


def kept(name: str) -> list[Path]:
    """What was found once, by any way."""
    return sorted(p for p in (CORPUS / name).glob("*") if p.is_file())


def keep(name: str, data: bytes, why: str) -> Path:
    """For ever: `make test` feeds it from now on."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / why
    path.write_bytes(data)
    return path


def strategy(fed: Fed) -> st.SearchStrategy[bytes]:
    """Any bytes; words in a row; a seed with some of it cut out, doubled, or written over."""
    words = st.sampled_from(fed.words) | st.binary(max_size=4)
    rows = st.lists(words, max_size=30).map(b"".join)
    edits = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 20), words), max_size=4)
    edited = st.tuples(st.sampled_from(fed.seeds), edits).map(lambda given: _edited(*given))
    return st.binary(max_size=200) | rows | edited


def _edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, size, word in edits:
        at = at % (len(data) + 1)
        data = data[:at] + word + data[at + size :]
    return data[:MOST]


def mutated(fed: Fed, source: random.Random, pool: list[bytes]) -> bytes:
    """Without coverage to guide it: one of ``pool``, with a few edits."""
    data = source.choice(pool)
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        at, size = source.randrange(len(data) + 1), source.choice((0, 0, 1, 2, 8, 64))
        match source.randrange(5):
            case 0:
                word = source.choice(fed.words)
            case 1:
                word = source.randbytes(source.choice((1, 2, 4)))
            case 2:
                word = data[at : at + size] * source.choice((2, 3, 50))
            case 3:
                word = bytes(b ^ (1 << source.randrange(8)) for b in data[at : at + 1])
            case _:
                other = source.choice(pool)
                word = other[source.randrange(len(other) + 1) :][:64]
        data = data[:at] + word + data[at + size :]
    return data[:MOST]
