"""Forms and raw bodies -> files: names, types, fields, limits, and what is refused in which words."""

from __future__ import annotations

import errno
import io
from typing import Any

import pytest

from distfs.body.ingest import IncomingFile, clean_name, files_in_form, source_of
from distfs.body.multipart import FormLimits
from distfs.body.source import Source
from distfs.errors import BodyCutShort, ClientGone, Refused, TooLarge
from tests.unit.test_ingest_multipart import B, Bytes, form

TYPE = f"multipart/form-data; boundary={B.decode()}"
LIMITS = FormLimits(max_file_size=1000)


def whole(source: Source, size: int = 7) -> bytes:
    """All of a Source, by views of ``size`` bytes, until one is not filled."""
    data = b""
    while True:
        view = memoryview(bytearray(size))
        count = source.readinto(view)
        data += view[:count]
        if count < size:
            return data


def files_of(body: bytes, limits: FormLimits = LIMITS) -> list[tuple[str, str, dict[str, str], bytes]]:
    return [
        (f.name, f.content_type, dict(f.fields), whole(f)) for f in files_in_form(Bytes(body), TYPE, limits)
    ]


def name_of(parameters: str) -> str:
    return files_of(form((parameters, b"x")))[0][0]


def test_several_files_come_with_the_fields_before_them() -> None:
    body = form(
        ('name="title"', "späte Post".encode()),
        ('name="file"; filename="a.txt"', b"one"),
        ('name="note"', b""),
        ('name="file"; filename="b.txt"', b""),
        ('name="after"', b"x"),
    )
    assert files_of(body) == [
        ("a.txt", "text/plain", {"title": "späte Post"}, b"one"),
        ("b.txt", "text/plain", {"title": "späte Post", "note": ""}, b""),
    ]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('name="file"; filename="plain.txt"', "plain.txt"),
        ("name=file; filename=token.txt", "token.txt"),
        ('name="file"; filename="Grüße 世界 🎉.txt"', "Grüße 世界 🎉.txt"),
        ("name=\"file\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.txt", "file"),
        ('name="file"; filename="x"; filename*=utf-8\'en\'%E2%82%AC', "x"),
        ('name="file"; filename*0="long"; filename*1=" name"', "file"),
        ('name="file"; filename="say %22hi%22.txt"', 'say "hi".txt'),
        ('name="file"; filename="say \\"hi\\".txt"', 'say "hi".txt'),
        ('name="file"; filename="two%0D%0Alines"', "two__lines"),
        ('name="file"; filename="100%25 %0d"', "100%25 %0d"),
        ('name="file"; filename="C:\\dir\\file.txt"', "file.txt"),
        ('name="file"; filename="C:\\\\dir\\\\file.txt"', "file.txt"),
        ('name="file"', "file"),
        ('name="file"; filename="../../etc/passwd"', "../../etc/passwd"),
        ('name="file"; filename="a;b=c.txt"', "a;b=c.txt"),
        ('name="file"; filename="tab\there"', "tab_here"),
        ('filename="first.txt"; name="file"', "first.txt"),
        ('name="file"; filename=""', "file"),
    ],
)
def test_a_file_name_is_kept_as_data(parameters: str, name: str) -> None:
    assert name_of(parameters) == name


def test_a_name_in_another_charset_does_not_cost_the_upload() -> None:
    body = form(('name="file"; filename="caf?"', b"x")).replace(b"caf?", b"caf\xe9")
    assert files_of(body)[0][0] == "caf\ufffd"


def test_a_name_may_be_1024_bytes_long_and_no_longer() -> None:
    assert clean_name("é" * 512) == "é" * 512
    with pytest.raises(Refused, match="1,024 bytes"):
        clean_name("é" * 512 + "x")
    with pytest.raises(Refused, match="1,024 bytes"):
        name_of(f'name="file"; filename="{"x" * 1025}"')


def test_names_have_no_control_characters_nor_halves_of_characters() -> None:
    assert clean_name("a\x00b\x1b[31mc\x7f\x85\u2028d\n") == "a_b_[31mc___d_"
    assert clean_name("\udce9") == "?"
    assert clean_name("") == "file"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(), "the form is empty: curl -F file=@NAME"),
        (form(('name="other"', b"1")), "only the fields 'other': curl -F file=@NAME"),
        (
            form(('name="upload"; filename="a"', b"1")),
            "field 'upload'; it belongs in 'file': curl -F file=@NAME",
        ),
        (
            form(('name="file"', b"text")).replace(b"\r\nContent-Type: text/plain", b""),
            r"holds text and not a file: curl -F file=@NAME URL/upload \(with the @\)",
        ),
        (form(('name="file"; filename=""', b"")), "no file was chosen"),
        (form(('name="file"; filename="a"', b"1"), ('name="b"; filename="b"', b"1")), "belongs in 'file'"),
    ],
)
def test_a_form_without_a_proper_file_is_refused_with_the_remedy(body: bytes, words: str) -> None:
    with pytest.raises(Refused, match=words):
        files_of(body)


def test_a_file_input_left_empty_beside_a_chosen_file_is_passed_over() -> None:
    body = form(('name="second"; filename=""', b""), ('name="file"; filename="a"', b"1"))
    assert [f[0] for f in files_of(body)] == ["a"]


def test_a_file_cut_short_says_so_before_its_end_is_reported() -> None:
    body = form(('name="file"; filename="a"', b"0123456789"))
    (file,) = [next(files_in_form(Bytes(body[:-20]), TYPE, LIMITS))]
    with pytest.raises(BodyCutShort, match="nothing was stored"):
        whole(file)


def test_max_file_size_holds_for_each_file_of_a_form() -> None:
    exact = ('name="file"; filename="a"', b"x" * 1000)
    assert [len(f[3]) for f in files_of(form(exact, exact))] == [1000, 1000]
    with pytest.raises(TooLarge, match="larger than the 1000 bytes that are taken"):
        files_of(form(exact, ('name="file"; filename="b"', b"x" * 1001)))


def test_a_raw_file_too_large_by_its_declared_size_is_refused_before_a_byte_is_read() -> None:
    source = Bytes(b"x" * 1001)
    with pytest.raises(TooLarge):
        IncomingFile(source, "a", "text/plain", size=1001, max_size=1000)
    assert source.at == 0
    assert whole(IncomingFile(source, "a", "text/plain", size=1000, max_size=2000)) == b"x" * 1001


def test_a_raw_file_of_unknown_size_is_stopped_at_the_limit() -> None:
    with pytest.raises(TooLarge):
        whole(IncomingFile(Bytes(b"x" * 1001), "a", "", max_size=1000))


# --- wsgi.input -----------------------------------------------------------------------------------


class Trickle(io.BytesIO):
    """A file that gives less than asked, as a socket may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(3, size or 0))


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, size: int) -> bytes:
        raise self.error


def environ(data: bytes, **more: Any) -> dict[str, Any]:
    return {"wsgi.input": Trickle(data)} | more


def test_a_body_is_read_to_its_content_length_and_not_beyond() -> None:
    source = source_of(environ(b"0123456789NEXT", CONTENT_LENGTH="10"))
    assert whole(source, 4) == b"0123456789"
    assert source.readinto(memoryview(bytearray(4))) == 0


def test_a_body_shorter_than_its_content_length_is_cut_short() -> None:
    with pytest.raises(BodyCutShort, match="5 bytes before"):
        whole(source_of(environ(b"01234", CONTENT_LENGTH="10")))


def test_a_chunked_body_is_read_to_the_end_the_server_gives_it() -> None:
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    assert whole(source_of(environ(b"0123456789", **chunked))) == b"0123456789"


def test_a_chunked_body_under_a_server_that_cannot_end_it_is_refused_instead_of_stored_empty() -> None:
    with pytest.raises(Refused, match="Content-Length"):
        source_of(environ(b"x", HTTP_TRANSFER_ENCODING="chunked"))


def test_without_length_and_chunks_there_is_no_body() -> None:
    assert whole(source_of(environ(b"NEXT"))) == b""
    assert whole(source_of(environ(b"NEXT", **{"wsgi.input_terminated": True}))) == b""


def test_our_own_servers_input_is_used_as_it_is() -> None:
    source = Bytes(b"x")
    assert source_of({"wsgi.input": source, "distfs.writes_views": True}) is source


@pytest.mark.parametrize("text", ["-1", "ten", "1e3", "+1", "1, 2"])
def test_a_bad_content_length_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="Content-Length"):
        source_of(environ(b"", CONTENT_LENGTH=text))


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (ConnectionResetError(errno.ECONNRESET, "gone"), ClientGone),
        (TimeoutError(), ClientGone),
        (OSError("no more data after all of it that came"), BodyCutShort),
        (ValueError("bad chunk"), Refused),
    ],
)
def test_a_hosts_own_errors_are_told_apart_by_what_the_client_did(error: Exception, becomes: type) -> None:
    with pytest.raises(becomes):
        whole(source_of({"wsgi.input": Failing(error), "CONTENT_LENGTH": "5"}))
