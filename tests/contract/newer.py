"""Fragments as a distfs of tomorrow writes them: made of those that are there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distfs.formats.features import Extra, Features
from distfs.formats.fragment import FragmentHeader, FragmentTable, checksum, pack_footer, read_layout

#: A bit that no distfs knows, of any kind.
UNKNOWN = 1 << 31

NEWER_TO_READ = Extra(Features(incompat=UNKNOWN))
NEWER_TO_CHANGE = Extra(Features(read_only=UNKNOWN))
NEWER_AND_NO_MATTER = Extra(Features(compat=UNKNOWN))


def remade(
    fragment: bytes, header: Extra, footer: Extra | None = None, codec: int | None = None, spoil: bool = False
) -> bytes:
    """The same cells, with more in header and footer; ``codec``: of all cells; ``spoil``: a byte of the first one."""
    head, length = FragmentHeader.unpack(fragment)
    _, table, _, at = read_layout(len(fragment), lambda n, offset: fragment[offset : offset + n])
    cells = bytearray(fragment[at : at + table.offsets[-1]])
    if spoil:
        cells[0] ^= 1
    if codec is not None:
        table = FragmentTable(
            tuple(e._replace(codec=codec) for e in table.entries), table.slice_size, table.last
        )
    packed_head, packed = replace(head, extra=header).pack(length), table.pack()
    foot = pack_footer(table, packed, len(packed_head) + len(cells), packed_head, footer or header)
    return packed_head + cells + packed + foot


def of_version(fragment: bytes, version: int) -> bytes:
    """Of a format version of the future, whose header is as large as that of version 2."""
    made = bytearray(remade(fragment, NEWER_AND_NO_MATTER))
    made[8:10] = version.to_bytes(2, "little")
    made[26:34] = checksum(bytes(made[:26])).to_bytes(8, "little")
    return bytes(made)


#: Each takes a newer distfs to read.
UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the header": lambda fragment: remade(fragment, NEWER_TO_READ),
    "a bit of the footer": lambda fragment: remade(fragment, NEWER_AND_NO_MATTER, NEWER_TO_READ),
    "a format version": lambda fragment: of_version(fragment, 3),
}


def rewrite(path: Path, make: Callable[[bytes], bytes]) -> None:
    """A fragment's file on disk; it stays as old as it was."""
    kept = path.stat()
    path.write_bytes(make(path.read_bytes()))
    os.utime(path, (kept.st_atime, kept.st_mtime))
