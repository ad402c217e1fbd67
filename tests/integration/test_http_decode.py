"""Bodies that are sent compressed: kept as they come, or unpacked on their way in, within the limits of any file."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from distfs.body.decoded import DecodedSource
from distfs.errors import BodyCutShort, DistfsError, Refused
from tests.forms import FORM, file_part, form, some_bytes
from tests.service import MAX_FILE, SLICE, TestService

TEXT = b"".join(b"%d: a line, %d\n" % (n, n * n % 997) for n in range(30_000)) + some_bytes(SLICE)
Pack = Callable[[bytes], bytes]


def streamed(data: bytes) -> bytes:
    """A frame that does not say how long it is, with a checksum; and in front what is skipped."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return struct.pack("<II", 0x184D2A55, 3) + b"abc" + packer.compress(data) + packer.flush()


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:])


def frames(data: bytes) -> bytes:
    half = len(data) // 2
    return b"".join(map(zstandard.ZstdCompressor().compress, (data[:half], b"", data[half:])))


WAYS: list[tuple[str, Pack]] = [
    ("gzip", gzip.compress),
    ("gzip", members),
    ("zstd", zstandard.ZstdCompressor().compress),
    ("zstd", streamed),
    ("zstd", frames),
]


class Trickle:
    """A Source that gives ``step`` bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step, self.given = data, step, 0

    def readinto(self, view: memoryview) -> int:
        piece = self._data[self.given : self.given + min(self._step, len(view))]
        view[: len(piece)] = piece
        self.given += len(piece)
        return len(piece)


def unpacked(coding: str, data: bytes, step: int = 1 << 20, room: int = 70_000) -> bytes:
    source, view, out = DecodedSource(Trickle(data, step), coding), memoryview(bytearray(room)), b""
    while count := source.readinto(view):
        out += view[:count]
    return out


@pytest.mark.parametrize(("coding", "pack"), WAYS)
@pytest.mark.parametrize(("step", "room"), [(1 << 20, 1 << 20), (1000, 333), (7, 50_000)])
def test_a_stream_is_unpacked_however_it_comes(coding: str, pack: Pack, step: int, room: int) -> None:
    data = TEXT if step > 100 else TEXT[:20_000]
    assert unpacked(coding, pack(data), step, room) == data
    assert unpacked(coding, pack(b""), step, room) == b""


@pytest.mark.parametrize(("coding", "pack"), WAYS)
def test_one_that_ends_early_or_is_damaged_is_refused(coding: str, pack: Pack) -> None:
    packed = pack(TEXT[:50_000])
    for end in (1, 3, 6, 12, 20, len(packed) // 3, len(packed) - 1):
        with pytest.raises((BodyCutShort, Refused)):
            unpacked(coding, packed[:end])
    for wrong in (packed + b"garbage", b"garbage" + packed, zlib.compress(TEXT), TEXT[:1000]):
        with pytest.raises(Refused):
            unpacked(coding, wrong)
    for at in range(0, len(packed), max(1, len(packed) // 200)):
        hurt = bytearray(packed)
        hurt[at] ^= 0x55
        try:
            assert len(unpacked(coding, bytes(hurt))) <= 1 << 20
        except DistfsError:
            pass


def test_a_frame_with_a_window_that_is_too_large_or_a_dictionary_is_refused() -> None:
    large = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=large).compressobj()
    words = r"^the body's zstd needs a window of 128\.0 MiB, and at most 8\.0 MiB are taken: pack it without"
    with pytest.raises(Refused, match=words):
        unpacked("zstd", packer.compress(TEXT) + packer.flush())
    told_its_size = zstandard.ZstdCompressor(compression_params=large).compress(bytes(9 << 20))
    with pytest.raises(Refused, match=r"a window of (9|128).0 MiB"):
        unpacked("zstd", told_its_size)
    just = zstandard.ZstdCompressionParameters(window_log=23)
    assert unpacked("zstd", zstandard.ZstdCompressor(compression_params=just).compress(bytes(9 << 20)))


@pytest.mark.parametrize("step", [1 << 20, 7])
def test_zeros_behind_gzip_are_skipped_as_gzip_does(step: int) -> None:
    """As of a tape, whose blocks are full."""
    assert unpacked("gzip", members(TEXT[:2000]) + bytes(10_240), step) == TEXT[:2000]
    for wrong in (bytes(10) + gzip.compress(TEXT[:2000]), gzip.compress(TEXT[:2000]) + bytes(10) + b"x"):
        with pytest.raises((Refused, BodyCutShort)):
            unpacked("gzip", wrong, step)


EMPTY_FRAME = zstandard.ZstdCompressor().compress(b"")
#: Of a frame that does not say how long it is; its blocks, each of no byte, are not the last.
HEAD, EMPTY_BLOCK = b"\x28\xb5\x2f\xfd\x00\x58", bytes(3)


@pytest.mark.parametrize(
    ("begin", "part"),
    [(b"", EMPTY_FRAME), (HEAD, EMPTY_BLOCK), (b"", struct.pack("<II", 0x184D2A50, 0))],
    ids=["frames", "blocks", "skipped"],
)
def test_a_body_that_never_has_a_byte_is_ended(begin: bytes, part: bytes) -> None:
    body = Trickle(begin + part * 200_000, 1 << 20)
    with pytest.raises(Refused, match="without a byte"):
        DecodedSource(body, "zstd").readinto(memoryview(bytearray(10)))
    assert body.given < len(body._data)


def test_the_frames_of_a_body_share_what_unpacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One takes longer to make than a small frame to unpack."""
    made, real = [], zstandard.ZstdDecompressor

    def counted(**how: Any) -> zstandard.ZstdDecompressor:
        made.append(how)
        return real(**how)

    monkeypatch.setattr(zstandard, "ZstdDecompressor", counted)
    body = b"".join(zstandard.ZstdCompressor().compress(bytes([n])) for n in range(256))
    assert unpacked("zstd", body) == bytes(range(256))
    assert len(made) == 1


@pytest.mark.parametrize(("coding", "pack"), WAYS)
def test_it_is_kept_as_it_is_or_unpacked(service: TestService, coding: str, pack: Pack) -> None:
    packed = pack(TEXT)
    for query, kept in (("", packed), ("?decode=1", TEXT)):
        answer = service.ask("PUT", f"/upload/x{query}", packed, {"Content-Encoding": coding})
        assert answer.status == 201, answer.text
        assert service.ask("GET", f"/download/{answer.text.strip()}").body == kept


@pytest.mark.parametrize("value", ["yes", "true", "on", ""])
def test_what_is_neither_yes_nor_no_is_refused(service: TestService, value: str) -> None:
    answer = service.ask(
        "PUT", f"/upload/x?decode={value}", gzip.compress(b"x"), {"Content-Encoding": "gzip"}
    )
    assert (answer.status, "it is 1, or 0" in answer.text) == (400, True), answer.text
    packed = gzip.compress(b"x")
    answer = service.ask("PUT", "/upload/x?decode=0", packed, {"Content-Encoding": "gzip"})
    assert service.ask("GET", f"/download/{answer.text.strip()}").body == packed


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_without_a_byte_is_in_no_coding(service: TestService, coding: str) -> None:
    answer = service.ask("PUT", "/upload/x?decode=1", b"", {"Content-Encoding": coding})
    assert (answer.status, f"the body is empty, and no {coding}" in answer.text) == (400, True), answer.text


@pytest.mark.parametrize(("coding", "pack"), WAYS)
def test_a_form_is_unpacked_and_else_refused(service: TestService, coding: str, pack: Pack) -> None:
    body, headers = pack(form(file_part("a", TEXT))), FORM | {"Content-Encoding": coding}
    answer = service.ask("POST", "/upload?decode=1", body, headers)
    assert service.ask("GET", f"/download/{answer.text.strip()}").body == TEXT
    refused = service.ask("POST", "/upload", body, headers)
    assert (refused.status, refused.headers["Accept-Encoding"]) == (415, "identity, gzip, zstd")
    assert "?decode=1" in refused.text


@pytest.mark.parametrize(("coding", "pack"), WAYS)
def test_a_bomb_is_ended_by_the_limit_of_any_file(service: TestService, coding: str, pack: Pack) -> None:
    before = service.fragments()
    bomb = pack(bytes(12 * MAX_FILE))
    assert len(bomb) < MAX_FILE / 10
    answer = service.ask("PUT", "/upload/x?decode=1", bomb, {"Content-Encoding": coding})
    assert answer.status == 413
    assert "the file is larger than" in answer.text
    assert service.fragments() == before


@pytest.mark.parametrize(("coding", "pack"), WAYS[:4])
def test_what_is_cut_short_stores_nothing(service: TestService, coding: str, pack: Pack) -> None:
    before = service.fragments()
    packed = pack(TEXT)
    answer = service.ask("PUT", "/upload/x?decode=1", packed[:-10], {"Content-Encoding": coding})
    assert answer.status == 400, answer.text
    assert service.fragments() == before
