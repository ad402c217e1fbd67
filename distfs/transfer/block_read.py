"""One block on its way out: the cells that came, and where in memory each is received."""

from __future__ import annotations

from typing import NamedTuple

from distfs.errors import Corrupt
from distfs.formats.coding import Code
from distfs.formats.fragment import RAW, CellEntry, check_codec, checksum
from distfs.transfer.remains import Remnant


class Stranger(Corrupt):
    """A cell that is of another code word than those that came: one of them is not what it says."""


class StoredBlock(NamedTuple):
    """A block as it is stored, before it is cut into cells."""

    coded: memoryview  # the block itself, or what it was compressed to; valid until the next
    codec: int
    plain: int  # checksum of the plain block


class Rooms:
    """Memory for the cells of blocks that are all received into one buffer, one after the other."""

    def __init__(self, code: Code, block_size: int) -> None:
        self.code, self._block_size = code, block_size
        self._scratch: dict[int, bytearray] = {}  # for cells that have no place in the block
        self._known: dict[tuple[int, int], memoryview] = {}  # by fragment index and length of the block

    def clear(self) -> None:
        self._known.clear()
        self._scratch.clear()

    def plain(self, index: int, whole: memoryview) -> memoryview:
        """Where to receive a cell of fragment ``index`` of the block that is to be ``whole``, of the one buffer."""
        view = self._known.get((index, len(whole)))
        if view is None:
            view = self.code.landing(index, whole)
            if view is None:
                view = self._beside(index, self.code.cell_size(len(whole)))
            self._known[index, len(whole)] = view
        return view

    def packed(self, index: int, coded: memoryview, length: int) -> memoryview:
        """The same of a cell of ``length`` bytes of what a block was compressed to."""
        view = self.code.landing(index, coded)
        return self._beside(index, length) if view is None else view

    def _beside(self, index: int, length: int) -> memoryview:
        room = self._scratch.get(index)
        if room is None:
            room = self._scratch[index] = bytearray(self.code.cell_size(self._block_size))
        return memoryview(room)[:length]


class BlockRead:
    """What has come of one block so far, by fragment index."""

    __slots__ = (
        "_rooms",
        "cells",
        "codec",
        "late",
        "number",
        "out",
        "remnants",
        "spent",
        "strangers",
        "sums",
        "tried",
        "whole",
    )

    def __init__(self, number: int, whole: memoryview, rooms: Rooms) -> None:
        self.number, self.whole = number, whole  # ``whole``: room for the plain block, which is so long
        self._rooms = rooms
        self.out = whole  # what was coded, of the cells that came: never longer than the block
        self.codec = RAW
        self.cells: dict[int, memoryview] = {}
        self.sums: dict[int, int] = {}  # what the cells' checksums should be
        self.spent: set[int] = set()  # fragments whose cell of this block is no good
        self.strangers: set[int] = set()  # fragments whose cell is of another code word than those that came
        self.remnants: set[int] = set()  # fragments of which the cell is not from where the row says
        self.tried: set[Remnant] = set()
        self.late: set[int] = set()  # those of which nothing is known but that another was quicker

    @property
    def asked(self) -> set[int]:
        """Fragments that need not be asked for this block again; those that were late, while there are others."""
        return self.spent | self.late | self.strangers | set(self.cells)

    def place(self, index: int, entry: CellEntry, whole: memoryview) -> memoryview:
        """Where in ``whole``, room for the block, a cell that is ``entry`` is received. Raises Corrupt when no cell
        of it is such, Stranger when none is beside those that came."""
        code = self._rooms.code
        if self.cells and (entry.codec, entry.length) != (self.codec, code.cell_size(len(self.out))):
            raise Stranger(f"cell {self.number} of {entry.length} bytes is of another code word than others")
        if entry.codec != RAW:
            return self._place_packed(index, entry, whole)
        view = self._rooms.plain(index, whole) if whole is self.whole else whole
        if entry.length != len(view):
            raise Corrupt(f"cell {self.number} has {entry.length} bytes, {len(view)} expected")
        return view

    def _place_packed(self, index: int, entry: CellEntry, whole: memoryview) -> memoryview:
        """Cells of a block that was compressed are smaller than those of the plain one, or it would not be."""
        check_codec(entry)
        code = self._rooms.code
        coded = code.coded(entry.length)
        if not 0 < coded < len(whole) or code.cell_size(coded) != entry.length:
            raise Corrupt(
                f"cell {self.number} has {entry.length} compressed bytes, of a block of {len(whole)}"
            )
        return self._rooms.packed(index, whole[:coded], entry.length)

    def take(self, index: int, entry: CellEntry) -> memoryview:
        """A cell is here -> where. Raises as ``place``."""
        if not self.cells:
            self.codec, self.out = entry.codec, self.whole
            if entry.codec != RAW:
                self.out = self.whole[: self._rooms.code.coded(entry.length)]
        view = self.place(index, entry, self.whole)
        self.cells[index], self.sums[index] = view, entry.checksum
        return view

    def bad_cells(self) -> list[int]:
        """Those that fail their checksums."""
        return [index for index, view in self.cells.items() if checksum(view) != self.sums[index]]
