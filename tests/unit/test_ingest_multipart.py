"""The streaming form parser against a plain reading of RFC 2046, wherever the bytes are split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distfs.body.multipart import SCRATCH, FormLimits, MultipartReader, boundary_of, find
from distfs.errors import BodyCutShort, DistfsError, Refused, TooLarge

B = b"----form-aB3"
LIMITS = FormLimits(max_file_size=1 << 30)


class Bytes:
    """A Source of bytes in memory; keeps the fill contract and checks that the reader needs no more."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.ended = data, 0, False

    def readinto(self, view: memoryview) -> int:
        assert not self.ended, "read on after the end"
        count = min(len(view), len(self.data) - self.at)
        view[:count] = self.data[self.at : self.at + count]
        self.at += count
        return count


def form(
    *parts: tuple[str, bytes], boundary: bytes = B, preamble: bytes = b"", epilogue: bytes = b"\r\n"
) -> bytes:
    """A form as browsers write it: each part ``(the parameters of its Content-Disposition, data)``."""
    body = preamble
    for parameters, data in parts:
        body += b"--" + boundary + b"\r\nContent-Disposition: form-data; " + parameters.encode()
        body += b"\r\nContent-Type: text/plain\r\n\r\n" + data + b"\r\n"
    return body + b"--" + boundary + b"--" + epilogue


Part = tuple[str, str | None, bytes]


def parts_of(
    body: bytes, sizes: Sequence[int] = (1 << 16,), boundary: bytes = B, limits: FormLimits = LIMITS
) -> list[Part]:
    """All parts, read by views of the given sizes in turn; the same whether its size is known or not."""
    found: list[list[Part]] = []
    errors: list[DistfsError] = []
    for size in (None, len(body)):
        try:
            found.append(_parts(body, sizes, boundary, limits, size))
        except DistfsError as e:
            errors.append(e)
    assert len(found) == 2 or [(type(e), str(e)) for e in errors[:1]] == [
        (type(e), str(e)) for e in errors[1:]
    ]
    if errors:
        raise errors[0]
    assert found[0] == found[1]
    return found[0]


def _parts(
    body: bytes, sizes: Sequence[int], boundary: bytes, limits: FormLimits, size: int | None
) -> list[Part]:
    """Checks that each view but the last is filled."""
    source = Bytes(body)
    reader = MultipartReader(source, boundary, limits, size)
    found = []
    while head := reader.next_part():
        data, turn = b"", 0
        while True:
            view = memoryview(bytearray(sizes[turn % len(sizes)]))
            turn += 1
            count = reader.readinto(view)
            data += view[:count]
            if count < len(view):
                break
        assert reader.readinto(memoryview(bytearray(3))) == 0
        found.append((head.name, head.filename, data))
    assert source.at == len(body)
    return found


def parts_by_the_book(body: bytes, boundary: bytes = B) -> list[bytes]:
    """The parts' data, found with the whole body in memory."""
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(--|[ \t]{0,64}\r\n)")
    body = b"\r\n" + body
    match = delimiter.search(body)
    found = []
    while match and match[1] != b"--":
        following = delimiter.search(body, match.end() - 2)
        assert following
        found.append(body[match.end() : following.start()].partition(b"\r\n\r\n")[2])
        match = following
    return found


NASTY = [
    b"",
    b"x",
    b"\r",
    b"\r\n",
    b"\r\n--",
    b"\r\n--" + B[:-1],
    b"\r\n--" + B[:-1] + b"x",
    b"\r\n--" + B + b"x",
    b"\r\n--" + B + b"-x",
    b"\r\n--" + B + b" \t x",
    b"\r\n--" + B + b"\rx",
    b"\r\n--" + B + b"\n",
    b"--" + B + b"--",
    b"\n--" + B + b"--\r\n",
    b"\r\r\n--" + B[:3] + b"\r\n--" + B[:5] + b"\r",
    b"\r\n\r\n\r\n",
    (b"\r\n--" + B + b"!") * 40,
    b"-" * 300,
]


@pytest.mark.parametrize("data", NASTY)
def test_a_file_comes_out_whole_whatever_it_holds_and_however_it_is_read(data: bytes) -> None:
    body = form(('name="a"', b"1"), ('name="file"; filename="f"', data), ('name="z"', data))
    for size in (*range(1, 48), 64, 100, 1000):
        assert parts_of(body, [size]) == [("a", None, b"1"), ("file", "f", data), ("z", None, data)], size


@pytest.mark.parametrize("edge", [SCRATCH, 1 << 17])
def test_a_delimiter_is_found_at_every_offset_around_a_block_edge(edge: int) -> None:
    head = len(form(('name="file"; filename="f"', b""))) - len(B) - 8
    for offset in range(-len(B) - 80, 12):
        data = b"\r" * (edge - head + offset)
        body = form(('name="file"; filename="f"', data), ('name="file"; filename="g"', b"\r\n--" + B + b"?"))
        for size in (edge, edge - 1):
            found = [part[2] for part in parts_of(body, [size])]
            assert found == [data, b"\r\n--" + B + b"?"], (offset, size)


pieces = st.sampled_from([b"\r", b"\n", b"-", b"--", b" ", b"\t", B, B[:4], b"\r\n--" + B, b"x", b"\r\n"])
near_boundary = st.lists(pieces, max_size=30).map(b"".join)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(near_boundary | st.binary(max_size=300), max_size=4), st.lists(st.integers(1, 90), min_size=1)
)
def test_random_forms_are_read_as_by_the_book(datas: list[bytes], sizes: list[int]) -> None:
    ends_a_part = re.compile(rb"\r\n--" + re.escape(B) + rb"(--|[ \t]*\r\n)")
    datas = [data for data in datas if not ends_a_part.search(b"\r\n" + data + b"\r\n--" + B[:1])]
    body = form(*(('name="file"; filename="f"', data) for data in datas))
    assert parts_by_the_book(body) == datas
    assert [part[2] for part in parts_of(body, sizes)] == datas


@settings(deadline=None, max_examples=400)
@given(near_boundary | st.binary(max_size=400), st.integers(1, 90))
def test_any_bytes_as_a_form_are_parsed_or_refused_in_words(body: bytes, size: int) -> None:
    words = ""
    try:
        parts_of(body, [size])
    except Refused as e:
        words = str(e)
        parsed = False
    else:
        parsed = True
    assert parsed or (words and "\n" not in words)


def test_every_form_cut_short_anywhere_is_refused() -> None:
    body = form(('name="a"', b"1"), ('name="file"; filename="f"', b"some bytes"), epilogue=b"")
    for end in range(len(body)):
        with pytest.raises(BodyCutShort):
            parts_of(body[:end], [7])
    assert parts_of(body, [7])


def test_preamble_padding_and_epilogue_are_passed_over() -> None:
    padded = form(('name="file"; filename="f"', b"x")).replace(b"--" + B + b"\r\n", b"--" + B + b" \t \r\n")
    epilogue = b" \t\r\nanything --" + B + b"\r\n at all"
    for preamble in (b"\r\n", b"This is a form.\r\n", b"\r\n--" + B[:-2] + b"\r\n"):
        assert parts_of(preamble + padded[:-2] + epilogue, [5]) == [("file", "f", b"x")]


@pytest.mark.parametrize("trailing", [b"x", b" x", b"\n", b"-", b"\r", b"\rx"])
def test_bytes_right_behind_the_closing_boundary_are_refused(trailing: bytes) -> None:
    with pytest.raises(Refused, match="closing boundary"):
        parts_of(form(('name="file"; filename="f"', b"x"), epilogue=trailing))


def test_a_boundary_line_of_endless_blanks_is_refused_rather_than_stored() -> None:
    body = form(('name="file"; filename="f"', b"x"), ('name="b"', b"y"))
    body = body[:10] + body[10:].replace(b"--" + B + b"\r\n", b"--" + B + b" " * 65 + b"\r\n")
    with pytest.raises(Refused, match="blanks"):
        parts_of(body, [16])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"hello", "no line with the boundary"),
        (form(('name="file"; filename="f"', b"x")).replace(b"\r\n", b"\n"), "no line with the boundary"),
        (b"--" + B + b"\r\n--" + B + b"--\r\n", "ended"),
        (b"--" + B + b"\r\nA: b\r\n--" + B + b"--\r\n\r\n", "blank line"),
        (b"--" + B + b"\r\n\r\nx\r\n--" + B + b"--\r\n", "no Content-Disposition"),
        (b"--" + B + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n--" + B + b"--", "Content-Disposition"),
        (b"--" + B + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n--" + B + b"--", "no name"),
        (
            b"--" + B + b'\r\nContent-Disposition: form-data; name="a"\nX: y\r\n\r\nx\r\n--' + B + b"--",
            "CRLF",
        ),
    ],
)
def test_a_malformed_form_is_refused_in_words_that_say_why(body: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parts_of(body)


def test_base64_is_refused_since_storing_it_would_store_other_bytes() -> None:
    body = form(('name="file"; filename="f"\r\nContent-Transfer-Encoding: base64', b"eA=="))
    with pytest.raises(Refused, match="base64"):
        parts_of(body)


def test_what_is_not_file_bytes_is_bounded() -> None:
    limits = FormLimits(
        max_file_size=10, max_form_overhead=2000, max_parts=3, max_header_size=200, max_field_size=50
    )
    file = ('name="file"; filename="f"', b"x" * 5000)
    assert parts_of(form(file), limits=limits)
    with pytest.raises(TooLarge, match="3 parts"):
        parts_of(form(file, file, file, file), limits=limits)
    with pytest.raises(TooLarge, match="200 bytes"):
        parts_of(form((f'name="{"n" * 200}"', b"")), limits=limits)
    with pytest.raises(TooLarge, match="max_form_overhead"):
        parts_of(b"p" * 2001 + b"\r\n" + form(file), limits=limits)
    with pytest.raises(TooLarge, match="max_form_overhead"):
        parts_of(form(file, epilogue=b"\r\n" + b"e" * 2001), limits=limits)
    reader = MultipartReader(Bytes(form(('name="a"', b"v" * 51))), B, limits)
    assert reader.next_part()
    with pytest.raises(TooLarge, match="50 bytes"):
        reader.read_field()


def test_headers_of_exactly_the_limit_pass_and_one_byte_more_does_not() -> None:
    head = b'Content-Disposition: form-data; name="a"\r\nContent-Type: text/plain\r\n'
    body = form(('name="a"', b"v" * 200_000))
    exact = FormLimits(max_file_size=1, max_header_size=len(head))
    assert parts_of(body, limits=exact)
    with pytest.raises(TooLarge):
        parts_of(body, limits=FormLimits(max_file_size=1, max_header_size=len(head) - 1))


def test_asking_for_the_next_part_too_early_is_our_bug_and_says_so() -> None:
    reader = MultipartReader(Bytes(form(('name="a"', b"12"), ('name="b"', b""))), B, LIMITS)
    reader.next_part()
    assert reader.readinto(memoryview(bytearray(1))) == 1
    with pytest.raises(DistfsError, match="read to its end"):
        reader.next_part()


def test_a_file_read_exactly_to_its_last_byte_counts_as_read_to_its_end() -> None:
    reader = MultipartReader(Bytes(form(('name="a"', b"12"), ('name="b"', b""))), B, LIMITS)
    reader.next_part()
    assert reader.readinto(memoryview(bytearray(2))) == 2
    head = reader.next_part()
    assert head is not None
    assert head.name == "b"


@pytest.mark.parametrize("data", [b"", b"x", b"\r\n--" + B[:-1], b"\r\n--" + B + b"x"])
def test_an_empty_part_is_told_from_one_that_begins_like_a_boundary(data: bytes) -> None:
    reader = MultipartReader(Bytes(form(('name="file"; filename=""', data))), B, LIMITS)
    reader.next_part()
    assert reader.is_empty() == (not data)
    view = memoryview(bytearray(100))
    assert bytes(view[: reader.readinto(view)]) == data


class Repeated:
    """A Source of ``head``, then ``size`` bytes nobody keeps, then ``tail``."""

    def __init__(self, head: bytes, size: int, tail: bytes) -> None:
        self.rest: Iterator[tuple[int, bytes | None]] = iter(
            ((len(head), head), (size, None), (len(tail), tail))
        )
        self.left, self.data = next(self.rest)

    def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if not self.left:
                following = next(self.rest, None)
                if following is None:
                    break
                self.left, self.data = following
                continue
            count = min(self.left, len(view) - filled)
            if self.data is not None:
                begin = len(self.data) - self.left
                view[filled : filled + count] = self.data[begin : begin + count]
            filled += count
            self.left -= count
        return filled


class Counted(Bytes):
    """A Source that counts how often it is asked."""

    asked = 0

    def readinto(self, view: memoryview) -> int:
        self.asked += 1
        return super().readinto(view)


@pytest.mark.parametrize(
    "piece", [b"\r", b"\r\n", b"\r\n--", b"\r\n--" + B[:-1], b"\r\n--" + B[:-1] + b"x", b"-", b"x"]
)
def test_no_bytes_make_the_reader_go_in_small_steps(piece: bytes) -> None:
    data, block = (piece * (4 << 20))[: 4 << 20], 1 << 18
    source = Counted(form(('name="file"; filename="f"', data)))
    reader = MultipartReader(source, B, LIMITS)
    reader.next_part()
    view, got = memoryview(bytearray(block)), b""
    while count := reader.readinto(view):
        got += view[:count]
    assert got == data
    assert source.asked <= 3 * len(data) // block + 5


@pytest.mark.parametrize("boundary", [b"-" * 70, b"a" * 70, b"ab" * 30, b"-"])
def test_a_boundary_of_one_kind_of_bytes_is_found(boundary: bytes) -> None:
    for data in (b"-" * 300, b"a" * 300, b"\r\n--" + boundary[:-1] + b"!\r\n-", b"\r" * 99 + b"\n-" * 99):
        body = form(('name="file"; filename="f"', data), boundary=boundary)
        for size in (1, 7, 1000, 5000):
            assert parts_of(body, [size], boundary=boundary) == [("file", "f", data)]


@pytest.mark.parametrize("follows", [b"x", b"-x", b" \t x", b" " * 60 + b"x"])
def test_a_file_full_of_the_boundary_is_refused(follows: bytes) -> None:
    assert parts_of(form(('name="file"; filename="f"', (b"\r\n--" + B + follows) * 3000)))
    with pytest.raises(Refused, match="another boundary"):
        parts_of(form(('name="file"; filename="f"', (b"\r\n--" + B + follows) * 30_000)))


def test_a_small_body_is_asked_for_once() -> None:
    """Each look at a source goes through all the sources that it stands in front of."""

    class Counting(Bytes):
        asked = 0

        def readinto(self, view: memoryview) -> int:
            self.asked += 1
            return super().readinto(view)

    body = form(('name="a"', b"x"), ('name="file"; filename="f"', bytes(4096)))
    source = Counting(body)
    reader = MultipartReader(source, B, LIMITS, len(body))
    while reader.next_part():
        reader.readinto(memoryview(bytearray(1 << 20)))
    assert source.asked == 1


def test_a_long_file_is_never_set_aside() -> None:
    size = 40 << 20
    head, _, tail = form(('name="file"; filename="f"', b"|")).partition(b"|")
    reader = MultipartReader(Repeated(head, size, tail), B, LIMITS)
    reader.next_part()
    view, total = memoryview(bytearray(1 << 20)), 0
    while count := reader.readinto(view):
        total += count
        assert len(reader._ahead) <= SCRATCH + 200
    assert total == size
    assert reader.next_part() is None


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b:c"', b"a b:c"),
        ("multipart/form-data;boundary=" + "x" * 70, b"x" * 70),
        ("multipart/form-data; boundary=a=b/c?d:e", b"a=b/c?d:e"),
        ("multipart/form-data; boundary==", b"="),
        ("multipart/form-data ; Boundary = abc ;", b"abc"),
        ('multipart/form-data; x="; boundary=no"; boundary="a\\b;"', b"ab;"),
    ],
)
def test_the_boundary_is_taken_from_the_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("", "not a form"),
        ("application/x-www-form-urlencoded", "not a form"),
        ("multipart/mixed; boundary=x", "not a form"),
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=a; boundary=b", "two boundaries"),
        ("multipart/form-data; boundary=a, multipart/form-data; boundary=a", "two boundaries"),
        ("multipart/form-data; boundary=a, multipart/form-data", "quotes"),
        ("multipart/form-data; boundary=a b", "quotes"),
        ("multipart/form-data; boundary=(a)", "quotes"),
        ('multipart/form-data; boundary="a', "1 to 70"),
        ('multipart/form-data; boundary=""', "no boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, "1 to 70"),
        ('multipart/form-data; boundary="x "', "1 to 70"),
        ('multipart/form-data; boundary="é"', "1 to 70"),
    ],
)
def test_a_bad_content_type_is_refused_in_words(content_type: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        boundary_of(content_type)


def test_a_quoted_boundary_with_blanks_and_signs_works() -> None:
    boundary = b"gc0p4Jq0M2Yt08j34c0p '()+_,-./:=?"
    body = form(('name="file"; filename="f"', b"x\r\n--gc0p4"), boundary=boundary)
    assert parts_of(body, [9], boundary=boundary) == [("file", "f", b"x\r\n--gc0p4")]


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=4), st.integers(0, 70))
def test_find_agrees_with_bytes_find(data: bytes, needle: bytes, start: int) -> None:
    start = min(start, len(data))
    assert find(memoryview(bytearray(data)), needle, start) == data.find(needle, start)
