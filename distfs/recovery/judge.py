"""What the fragments of a file amount to: the file, or why there is none. Pure; nothing is guessed.

All that fragments say of one slice, and slices of one file, must be the same, but for a name, since files are
renamed. What differs, or lacks too much, is told to people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from distfs.model import NewFile, Policy, Slice
from distfs.quantity import counted


@dataclass(frozen=True, slots=True)
class Found:
    """A fragment that a node keeps, by what it says of itself."""

    slice: UUID
    index: int
    node: int
    ordinal: int
    k: int
    m: int
    block_size: int
    name: str
    content_type: str
    size: int
    last: bool
    digest: bytes
    sha256: bytes | None
    saved: int = 0
    written_at: float = 0.0  # seconds since 1970

    @property
    def of_file(self) -> tuple[int, int, int, str]:
        return self.k, self.m, self.block_size, self.content_type

    @property
    def of_slice(self) -> tuple[object, ...]:
        return (*self.of_file, self.ordinal, self.size, self.last, self.digest)


@dataclass(frozen=True)
class Judged:
    """``file``: as it can be read; its sha-256 is empty where no fragment says it. None: why not."""

    file: NewFile | None
    why: str = ""
    #: More than one thing is said: who is right cannot be told. Else it is not all there.
    disagree: bool = False
    deleted: bool = False


class _Disagree(Exception):
    pass


class _Lacks(Exception):
    pass


def judge(file: UUID, found: Sequence[Found]) -> Judged:
    """Of all fragments that say they are of ``file``."""
    try:
        return Judged(_judge(file, found))
    except _Disagree as e:
        return Judged(None, str(e), disagree=True)
    except _Lacks as e:
        return Judged(None, str(e))


def _judge(file: UUID, found: Sequence[Found]) -> NewFile:
    if len({each.of_file for each in found}) > 1:
        raise _Disagree("its fragments do not say the same of it")
    shas = {each.sha256 for each in found} - {None}
    if len(shas) > 1:
        raise _Disagree("its fragments name several sha-256")
    by_slice: dict[UUID, list[Found]] = defaultdict(list)
    for each in found:
        by_slice[each.slice].append(each)
    by_ordinal: dict[int, list[Slice]] = defaultdict(list)
    last: dict[UUID, bool] = {}
    for id, kept in by_slice.items():
        if len({each.of_slice for each in kept}) > 1:
            raise _Disagree(f"fragments of slice {id} do not say the same of it")
        one = kept[0]
        by_ordinal[one.ordinal].append(
            Slice(id, one.ordinal, one.size, one.digest, _places(kept, one.k + one.m))
        )
        last[id] = one.last
    one = max(found, key=lambda each: each.written_at)  # made anew, a fragment has the name of that day
    chosen = [
        _choose(ordinal, by_ordinal.get(ordinal, []), last, one.k) for ordinal in range(max(by_ordinal) + 1)
    ]
    ends = [piece.ordinal for piece in chosen if last[piece.id]]
    if not ends:
        raise _Lacks(f"its end is not there, only its first {counted(len(chosen), 'slice')}")
    if ends != [len(chosen) - 1]:
        raise _Disagree(f"slice {ends[0]} says it is the last, and there are {len(chosen)}")
    size = sum(piece.size for piece in chosen)
    saved = sum(by_slice[piece.id][0].saved for piece in chosen)
    stored = size - saved if saved else None
    sha256 = next(iter(shas), None) or b""
    policy = Policy(one.k, one.m)
    return NewFile(
        file, one.name, one.content_type, size, sha256, policy, one.block_size, tuple(chosen), stored=stored
    )


def _choose(ordinal: int, slices: Sequence[Slice], last: Mapping[UUID, bool], k: int) -> Slice:
    """The slice that is to be a file's at a place. Of several of the same bytes the one with most fragments: an
    upload that was begun anew leaves such."""
    whole = [piece for piece in slices if _kept(piece) >= k]
    if not whole:
        most = max(map(_kept, slices), default=0)
        raise _Lacks(f"slice {ordinal} has {most} of the {counted(k, 'fragment')} that are needed")
    if len({(piece.size, piece.digest, last[piece.id]) for piece in whole}) > 1:
        raise _Disagree(f"{len(whole)} slices of other bytes say they are its slice {ordinal}")
    return max(whole, key=lambda piece: (_kept(piece), piece.id))


def _kept(piece: Slice) -> int:
    return len(piece.nodes) - piece.nodes.count(0)


def _places(kept: Sequence[Found], width: int) -> tuple[int, ...]:
    """For each fragment a node that keeps it, each node once, as many as can be; 0: nobody."""
    holders: list[list[int]] = [[] for _ in range(width)]
    for each in sorted(kept, key=lambda each: each.node):
        if each.index < width and each.node not in holders[each.index]:
            holders[each.index].append(each.node)
    at: dict[int, int] = {}  # by node: which fragment it is named for

    def place(index: int, tried: set[int]) -> bool:
        for node in holders[index]:
            if node not in tried:
                tried.add(node)
                if node not in at or place(at[node], tried):
                    at[node] = index
                    return True
        return False

    for index in range(width):
        place(index, set())
    named = {index: node for node, index in at.items()}
    return tuple(named.get(index, 0) for index in range(width))
