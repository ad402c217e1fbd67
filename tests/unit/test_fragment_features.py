"""Feature bits and records of fragments: what is newer is told from what is damaged, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distfs.errors import Corrupt, NewerFormat
from distfs.formats import features, wire
from distfs.formats.features import MAX_RECORDS, PLAIN, Extra, Features, pack_records, read_records
from distfs.formats.fixed import Cells, End
from distfs.formats.fragment import (
    FOOTER_EXTENDED_SIZE,
    FOOTER_SIZE,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    check_codec,
    named,
    outline,
    pack_footer,
    pack_whole,
    read_layout,
)
from tests.contract.newer import NEWER_TO_CHANGE, NEWER_TO_READ, UNKNOWN, UNREADABLE
from tests.unit.test_fragment import TINY, TINY_HEADER, parse

RECORDS = pack_records({1: b"x" * 32, 900: b""})
EXTRA = Extra(Features(compat=UNKNOWN), RECORDS)


def table_of(data: bytes) -> FragmentTable:
    return read_layout(len(data), lambda n, at: data[at : at + n]).table


def with_extra(header: Extra, footer: Extra = PLAIN, align: int = 1) -> bytes:
    head = replace(TINY_HEADER, extra=header).pack(align)
    _, table, length = parse(TINY)
    cells = TINY[length : length + table.offsets[-1]]
    packed = table.pack()
    return head + cells + packed + pack_footer(table, packed, len(head) + len(cells), head, footer)


@pytest.mark.parametrize("align", [1, 4096])
def test_what_header_and_footer_say_is_read_back(align: int) -> None:
    more = Extra(Features(compat=1 << 30), pack_records({2: b"at the end"}))
    data = with_extra(EXTRA, more, align)
    header, length = FragmentHeader.unpack(data)
    assert header == replace(TINY_HEADER, extra=EXTRA)
    assert length % align == 0
    extra = table_of(data).extra
    assert extra.features == Features(compat=UNKNOWN | 1 << 30)
    assert read_records(extra.records) == {1: b"x" * 32, 2: b"at the end", 900: b""}
    assert table_of(data).entries == table_of(TINY).entries


def test_a_fragment_without_is_written_as_ever() -> None:
    assert TINY[8:10] == b"\1\0"
    assert table_of(TINY).extra is PLAIN
    empty = Extra(Features(), b"")
    assert empty is not PLAIN
    assert replace(TINY_HEADER, extra=empty).pack() == TINY_HEADER.pack()
    with pytest.raises(Corrupt, match="more than its header has room for"):
        with_extra(PLAIN, EXTRA)


def test_a_fragment_of_one_cell_has_the_bits_of_its_header_in_its_footer() -> None:
    head = replace(TINY_HEADER, extra=EXTRA).pack()
    whole = pack_whole(head, CellEntry(3, 0, 1, 2), b"abc", 3, True)
    assert table_of(whole).extra == EXTRA
    assert outline(head).id == TINY_HEADER.id


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_takes_a_newer_distfs_to_read_says_so(kind: str) -> None:
    data = UNREADABLE[kind](TINY)
    with pytest.raises(NewerFormat, match="written by a newer distfs.*: upgrade this part"):
        table_of(data)
    if kind != "a bit of the footer":
        length = int.from_bytes(data[10:14], "little")
        with pytest.raises(NewerFormat):
            outline(data[:length])
        assert named(data[:length]) == "of no good header"


def test_what_takes_a_newer_distfs_to_change_can_be_read() -> None:
    data = with_extra(NEWER_TO_CHANGE)
    table = table_of(data)
    with pytest.raises(NewerFormat):
        table.check_changeable()
    with pytest.raises(NewerFormat):  # who keeps one answers for it
        outline(replace(TINY_HEADER, extra=NEWER_TO_CHANGE).pack())


def test_a_codec_that_is_not_known_is_no_damage() -> None:
    with pytest.raises(NewerFormat, match="codec 77"):
        check_codec(CellEntry(1, 77, 0, 0))


@pytest.mark.parametrize("extra", [EXTRA, NEWER_TO_READ], ids=["known", "newer"])
def test_no_flipped_bit_makes_a_damaged_fragment_newer(extra: Extra) -> None:
    """Nor a newer one damaged: what says that it is newer has a checksum of its own, at either end."""
    data = with_extra(extra, extra)
    told_by = range(34)  # of the header: what stays where it is in every version
    for at in range(len(data)):
        for bit in (1, 128):
            spoiled = bytearray(data)
            spoiled[at] ^= bit
            try:
                table_of(bytes(spoiled))
            except NewerFormat:
                assert extra is NEWER_TO_READ, f"byte {at}"
                assert at not in told_by
            except Corrupt:
                assert extra is EXTRA or at in told_by, f"byte {at}"
    for bit in (1, 2, 4, 128):  # an old one does not become newer either
        spoiled = bytearray(TINY)
        spoiled[8] ^= bit
        with pytest.raises(Corrupt):
            table_of(bytes(spoiled))


def test_parts_of_two_fragments_are_damaged() -> None:
    """Of one version, and of two."""
    other = Extra(Features(compat=1), pack_records({3: b"x" * 32, 900: b""}))
    made = [with_extra(EXTRA, EXTRA), with_extra(other, other), TINY]
    foot = [FOOTER_EXTENDED_SIZE, FOOTER_EXTENDED_SIZE, FOOTER_SIZE]
    for one in range(3):
        for two in range(3):
            if one != two:
                with pytest.raises(Corrupt):
                    table_of(made[one][: -foot[one]] + made[two][-foot[two] :])
                with pytest.raises(Corrupt):
                    table_of(made[two][:100] + made[one][100:])


def test_a_cut_fragment_is_damaged() -> None:
    data = with_extra(EXTRA, EXTRA)
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            table_of(data[:size])


@pytest.mark.parametrize(
    "packed",
    [b"\1", b"\1\0\5\0abcd", b"\1\0\0\0\1\0\0\0", b"\1\0\0\0\2"],
    ids=["cut", "long", "twice", "behind"],
)
def test_records_that_lie_are_damage(packed: bytes) -> None:
    with pytest.raises(Corrupt):
        read_records(packed)
    head = replace(TINY_HEADER, extra=Extra(Features(), packed)).pack()
    with pytest.raises(Corrupt):
        FragmentHeader.unpack(head)


def test_records_are_bounded() -> None:
    with pytest.raises(ValueError, match="at most 1024"):
        replace(TINY_HEADER, extra=Extra(Features(), bytes(MAX_RECORDS + 1))).pack()
    with pytest.raises(Corrupt, match="at most 1024"):
        with_extra(EXTRA, Extra(Features(), bytes(MAX_RECORDS + 1)))


def test_the_largest_header_fits() -> None:
    extra = Extra(Features(1, 0, 0), pack_records({1: bytes(MAX_RECORDS - 4)}))
    header = replace(TINY_HEADER, name="n" * 5000, content_type="t" * 5000, extra=extra)
    packed = header.pack(4096)
    assert len(packed) == 4096
    assert FragmentHeader.unpack(packed)[0].extra == extra


@pytest.mark.parametrize("extra", [PLAIN, EXTRA], ids=["plain", "extra"])
def test_frames_tell_it_where_there_is_any(extra: Extra) -> None:
    assert End.decode(End(7, True, extra).encode()) == End(7, True, extra)
    assert Cells.decode(Cells(7, True, 21, extra).encode()) == Cells(7, True, 21, extra)
    assert len(End(7, True).encode()) == 9
    assert len(Cells(7, True, 21).encode()) == 17


def test_a_peer_is_sent_what_it_takes() -> None:
    old, new = 0, wire.FEATURES
    assert wire.takes(old, PLAIN)
    assert not wire.takes(old, EXTRA)
    assert wire.takes(new, EXTRA)
    assert not wire.takes(new, NEWER_TO_READ)
    bit = Extra(Features(incompat=1 << 3))
    assert wire.takes(wire.Feature.EXTRA | 1 << 3 + wire.INCOMPAT_AT, bit)


def test_only_who_knows_it_is_told_that_something_is_newer() -> None:
    error = NewerFormat("written by a newer distfs")
    for agreed, kind in ((0, "unavailable"), (wire.FEATURES, "newer")):
        decoder = wire.Decoder()
        decoder.feed(wire.encode_error(error, agreed))
        frame = decoder.next_frame()
        assert frame is not None
        assert frame.header()["kind"] == kind
        assert type(wire.decode_error(frame.header(), "node")).kind == kind


def test_the_constants_fit_the_wire() -> None:
    assert features.INCOMPAT < 1 << 16
    assert all(bit < 1 << wire.INCOMPAT_AT for bit in wire.Feature)
