"""What fragments amount to: a file, or why there is none. Nothing is guessed."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from uuid import UUID

import pytest

from distfs.formats.heads import Head, HeadOf, decode, encode
from distfs.model import FragmentId
from distfs.recovery.judge import Found, judge

FILE = UUID(int=99)
WHOLE = Found(UUID(int=1), 0, 1, 0, 1, 1, 4096, "n", "text/plain", 10, True, b"d" * 16, b"s" * 32)


def slices(*sizes: int, k: int = 1, m: int = 1) -> list[Found]:
    """All fragments of slices of these sizes, fragment i on node i + 1."""
    return [
        replace(
            WHOLE,
            slice=UUID(int=1 + ordinal),
            ordinal=ordinal,
            size=size,
            index=index,
            node=index + 1,
            k=k,
            m=m,
            last=ordinal == len(sizes) - 1,
            digest=bytes([ordinal]) * 16,
        )
        for ordinal, size in enumerate(sizes)
        for index in range(k + m)
    ]


@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 1), (1, 2), (2, 1), (4, 2), (8, 8)])
def test_a_whole_file_is_as_it_was_in_whatever_order_it_is_found(k: int, m: int) -> None:
    found = slices(100, 100, 7, k=k, m=m)
    random.Random(k + m).shuffle(found)
    file = judge(FILE, found).file
    assert file is not None
    assert (file.size, file.sha256, file.name, file.policy.k, file.policy.m) == (207, b"s" * 32, "n", k, m)
    assert [piece.ordinal for piece in file.slices] == [0, 1, 2]
    assert {piece.nodes for piece in file.slices} == {tuple(range(1, k + m + 1))}


def test_what_is_missing_is_nobodys_and_k_are_enough() -> None:
    found = slices(100, 5, k=2, m=2)
    few = [f for f in found if f.index in (1, 3)]
    file = judge(FILE, few).file
    assert file is not None
    assert [piece.nodes for piece in file.slices] == [(0, 2, 0, 4)] * 2
    judged = judge(FILE, [f for f in few if (f.ordinal, f.index) != (1, 3)])
    assert judged.file is None
    assert judged.why == "slice 1 has 1 of the 2 fragments that are needed"
    assert not judged.disagree


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content_type": "other"}, "do not say the same of it"),
        ({"block_size": 8192}, "do not say the same of it"),
        ({"m": 2}, "do not say the same of it"),
        ({"size": 99}, "fragments of slice .* do not say the same"),
        ({"digest": b"x" * 16}, "fragments of slice .* do not say the same"),
        ({"last": True}, "fragments of slice .* do not say the same"),
        ({"ordinal": 1}, "fragments of slice .* do not say the same"),
        ({"sha256": b"x" * 32}, "several sha-256"),
    ],
)
def test_fragments_that_disagree_are_told_whoever_is_right(change: dict[str, object], words: str) -> None:
    found = slices(100, 100, 7)
    found[0] = replace(found[0], **change)  # type: ignore[arg-type]
    judged = judge(FILE, found)
    assert judged.file is None
    assert judged.disagree
    assert re.search(words, judged.why), judged.why


def test_a_renamed_file_has_the_name_of_the_fragment_that_was_made_last() -> None:
    """Repair, drain and rebalance write the name that a file has then; the other fragments keep the first."""
    found = [replace(f, written_at=1000.0) for f in slices(100, 100, 7)]
    for i in (1, 4):
        found[i] = replace(found[i], name=f"later {i}", written_at=2000.0 + i)
    for each in (found, found[::-1]):
        file = judge(FILE, each).file
        assert file is not None
        assert (file.name, file.size) == ("later 4", 207)


def test_a_sha_256_that_some_do_not_say_is_that_of_the_others() -> None:
    found = [replace(f, sha256=None) for f in slices(100, 7)]
    file = judge(FILE, found).file
    assert file is not None
    assert file.sha256 == b""
    found[3] = replace(found[3], sha256=b"q" * 32)
    file = judge(FILE, found).file
    assert file is not None
    assert file.sha256 == b"q" * 32


def test_two_slices_at_one_place_are_one_file_only_if_their_bytes_are_the_same() -> None:
    found = slices(100, 7)
    again = [replace(f, slice=UUID(int=50), node=f.node + 2) for f in found if f.ordinal == 0]
    file = judge(FILE, found + again[:1]).file
    assert file is not None
    assert file.slices[0].id == UUID(int=1), "the one with more fragments"
    assert judge(FILE, found + [replace(f, digest=b"o" * 16) for f in again]).disagree


def test_an_end_in_the_middle_or_none_makes_no_file() -> None:
    found = slices(100, 100, 7)
    assert (
        judge(FILE, [f for f in found if f.ordinal < 2]).why
        == "its end is not there, only its first 2 slices"
    )
    assert "slice 1 has 0 of the 1 fragment" in judge(FILE, [f for f in found if f.ordinal != 1]).why
    early = [replace(f, last=f.ordinal >= 1) for f in found]
    assert judge(FILE, early).why == "slice 1 says it is the last, and there are 3"


def test_each_node_is_named_once_and_as_many_fragments_as_can_be() -> None:
    """Fragment 0 is on 1 and 2, fragment 1 on 1 alone, as after a move whose old copy was not swept yet."""
    found = slices(7, k=1, m=2)
    a, b, c = found
    kept = [
        replace(a, node=1),
        replace(a, node=2),
        replace(b, node=1),
        replace(c, node=2),
        replace(c, node=1),
    ]
    file = judge(FILE, kept).file
    assert file is not None
    assert file.slices[0].nodes.count(0) == 1
    assert sorted(file.slices[0].nodes) == [0, 1, 2]
    twice = [replace(a, node=2), replace(a, node=1), replace(b, node=1)]
    file = judge(FILE, twice).file
    assert file is not None
    assert file.slices[0].nodes == (2, 1, 0)


def head(**change: object) -> HeadOf:
    said = Head(UUID(int=7), FILE, 0, 1, 1, 4096, "n\n\N{LINE SEPARATOR}\0ü", "t", 10, True, b"d" * 16, None)
    return HeadOf(FragmentId(UUID(int=1), 0), 100, 1.5, replace(said, **change))  # type: ignore[arg-type]


def test_a_page_is_read_as_it_was_written() -> None:
    page = [head(), head(sha256=b"s" * 32), HeadOf(FragmentId(UUID(int=2), 1), 5, 0.0, None, "cut\nshort")]
    assert list(decode(b"".join(map(encode, page)))) == page
    assert list(decode(b"")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0}, {"k": 9}, {"m": -1}, {"m": 9}, {"index": 16}, {"index": True}, {"ordinal": 2**40}, {"size": -1},
        {"size": 1.5}, {"last": 1}, {"digest": "00"}, {"digest": "zz" * 16}, {"sha256": "00"}, {"name": "x" * 1025},
        {"type": "x" * 256}, {"file": "none"}, {"slice": None}, {"stored": "1"}, {"age": []}, {"block": None},
    ],
)  # fmt: skip
def test_what_a_node_cannot_have_is_not_taken_from_it(change: dict[str, object]) -> None:
    line = json.loads(encode(head())) | change
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        list(decode(json.dumps(line).encode()))


def test_random_bytes_are_no_page() -> None:
    numbers = random.Random(3)
    whole = encode(head())
    for _ in range(2000):
        at = numbers.randrange(len(whole))
        cut = whole[:at] + bytes([numbers.randrange(256)]) + whole[at + numbers.randrange(3) :]
        try:
            for each in decode(cut):
                assert 0 <= each.id.index < 16
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
