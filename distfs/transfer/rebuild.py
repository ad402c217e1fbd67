"""One fragment made anew from the others: what a degraded write, a repair and a drain have in common."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice

from distfs.deadline import Deadline
from distfs.formats.features import PLAIN, Extra, Features
from distfs.formats.fragment import RAW, CellEntry, checksum
from distfs.fragment_store import FragmentStore, committed
from distfs.model import Slice
from distfs.peers.versioned import fitting
from distfs.transfer.slice_plan import PACKED, FileIdentity
from distfs.transfer.slice_read import SliceReader


def rebuild(
    file: FileIdentity,
    piece: Slice,
    index: int,
    reader: SliceReader,
    target: FragmentStore,
    buffer: memoryview,
    deadline: Deadline,
    ended: Callable[[], object] | None = None,
    extra: Extra = PLAIN,
) -> None:
    """Write fragment ``index`` to ``target`` from the checked blocks of ``reader``, which spans the slice. What was
    compressed is not so anew: another zstd may make another frame, and parity of that fits no cell there is.

    A copy is copied, a coded cell is computed; either way from bytes that MetaDB's digest vouches for, and it
    is durable on return. ``buffer`` has room for a block. ``ended``: called when the node was told the end; from
    then on it may keep the fragment, whatever it answers. ``extra``: what another fragment has beside its cells, of
    which it gets what an older distfs may ignore. Raises what reading and writing raise.
    """
    hint = file.code.cell_size(piece.size)
    blocks = reader.stored_blocks(buffer)
    first = list(islice(blocks, 1))  # from then on it is known whether some are compressed
    extra = Extra(Features(compat=extra.features.compat), extra.records)
    extra = fitting(extra | PACKED if reader.compressed else extra, target, deadline)
    writer = target.put(file.header(piece.id, piece.ordinal, index, extra), hint, deadline)
    with committed(writer):
        for coded, codec, plain in chain(first, blocks):
            cell = file.code.encode(coded)[index]
            own = plain if cell is coded and codec == RAW else checksum(cell)
            writer.write_cell(CellEntry(len(cell), codec, own, plain), memoryview(cell))
        writer.finish(piece.size, reader.last)
        if ended is not None:
            ended()
