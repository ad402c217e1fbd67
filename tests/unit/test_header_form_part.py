"""The headers of a form's part: what browsers, curl and libraries send, and the name that results."""

from __future__ import annotations

import pytest

from distfs.errors import Refused
from distfs.headers.form_part import PartHead, read

#: Who, the file's name there, what is sent for it in ``filename="…"``, the name that results. ``same``: of 1.
SENT = [
    # HTML's rule: Chrome, Firefox since 91, Safari, curl since 7.81
    ("HTML", "a.txt", "a.txt", "a.txt"),
    ("HTML", 'say "hi".txt', "say %22hi%22.txt", 'say "hi".txt'),
    ("HTML", "two\r\nlines", "two%0D%0Alines", "two\r\nlines"),
    ("HTML", "a\\b.txt", "a\\b.txt", "a\\b.txt"),
    ("HTML", "ends\\", "ends\\", "ends\\"),
    ("HTML", "\\", "\\", "\\"),
    ("HTML", '\\"', "\\%22", '\\"'),
    ("HTML", "Grüße 世界 🎉", "Grüße 世界 🎉", "Grüße 世界 🎉"),
    ("HTML", "100%25 %0d", "100%25 %0d", "100%25 %0d"),
    ("HTML", "a;b=c", "a;b=c", "a;b=c"),
    ("a folder, HTML", "dir/a.txt", "dir/a.txt", "dir/a.txt"),
    # curl before 7.81, Go, urllib3
    ("curl 7.80", 'say "hi".txt', 'say \\"hi\\".txt', 'say "hi".txt'),
    ("curl 7.80", "a\\b", "a\\\\b", "a\\b"),
    ("curl 7.80", "ends\\", "ends\\\\", "ends\\"),
    ("curl 7.80", 'a\\"', 'a\\\\\\"', 'a\\"'),
    ("curl 7.80", 'a"; x="b', 'a\\"; x=\\"b', 'a"; x="b'),
    # neither rule, but one meaning
    ("some", 'a\\b"c', 'a\\b\\"c', 'a\\b"c'),
    # the whole path: Internet Explorer, and others that call it so
    ("IE", "a.txt", "C:\\Users\\me\\a.txt", "a.txt"),
    ("IE", "a.txt", "\\\\server\\share\\a.txt", "a.txt"),
    ("Opera", "a.txt", "C:\\fakepath\\a.txt", "a.txt"),
]


@pytest.mark.parametrize("after", ["", " ", ";", '; x="y"'])
@pytest.mark.parametrize(("who", "there", "sent", "name"), SENT)
def test_a_name_is_what_its_sender_means(who: str, there: str, sent: str, name: str, after: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="{sent}"{after}\r\n'
    assert read(head.encode()) == PartHead("file", name, None), who
    assert there.rpartition("\n")[2] in name


@pytest.mark.parametrize(
    ("lines", "head"),
    [
        ("Content-Disposition: form-data; name=a", PartHead("a", None, None)),
        ("content-disposition:FORM-DATA;NAME=a", PartHead("a", None, None)),
        ('Content-Disposition: form-data; name=""', PartHead("", None, None)),
        ("Content-Disposition: form-data; name=a; filename=my file.txt", PartHead("a", "my file.txt", None)),
        ('Content-Disposition: form-data; filename="f"; name="a"', PartHead("a", "f", None)),
        ('Content-Disposition: form-data; filename="f\\"; name="a"', PartHead("a", "f\\", None)),
        ('Content-Disposition: form-data; name="a";\r\n\tfilename="f"', PartHead("a", "f", None)),
        ('Content-Disposition: form-data; name="a"\r\nContent-Type: a/b', PartHead("a", None, "a/b")),
        ('Content-Type:\r\nContent-Disposition: form-data; name="a"', PartHead("a", None, "")),
        (
            'Content-Disposition: form-data; name="a"\r\nContent-Type: a/b\r\nContent-Type: c/d',
            PartHead("a", None, "a/b, c/d"),
        ),
        ("Content-Disposition: form-data; name=a; filename*=UTF-8''x", PartHead("a", "", None)),
        ("Content-Disposition: form-data; name=a; filename=f; filename*=UTF-8''x", PartHead("a", "f", None)),
        ('Content-Disposition: form-data; name="a%22b"', PartHead('a"b', None, None)),
    ],
)
def test_a_parts_headers(lines: str, head: PartHead) -> None:
    assert read(f"{lines}\r\n".encode()) == head


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "no Content-Disposition"),
        ("Content-Type: a/b", "no Content-Disposition"),
        ("Content-Disposition: form-data", "no name"),
        ("Content-Disposition: form-data; filename=f", "no name"),
        ("Content-Disposition: attachment; name=a", "not form-data"),
        ("Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b", "two"),
        ("Content-Disposition: form-data; name=a; name=b", "cannot be read"),
        ('Content-Disposition: form-data; name="a', "cannot be read"),
        ('Content-Disposition: form-data; name="a"b', "cannot be read"),
        ("Content-Disposition: form-data; name", "cannot be read"),
        ("Content-Disposition: form-data; name=a\r\nno header", "is no header"),
        ("Content-Disposition: form-data; name=a\r\nA B: c", "is no header"),
        ("Content-Disposition: form-data; name=a\nX: y", "CRLF"),
        ("Content-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64", "base64"),
    ],
)
def test_what_a_parts_headers_cannot_be(lines: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(f"{lines}\r\n".encode())


@pytest.mark.parametrize("piece", ["\\", '"', ";", " ", 'a="\\', '\\"', "\t;", "C:\\"])
def test_hostile_headers_are_read_at_once(piece: str) -> None:
    hostile = piece * (60_000 // len(piece))
    for head in (f'form-data; name="a"; filename="{hostile}!', f"form-data; name=a; {hostile}!"):
        with pytest.raises(Refused):
            read(f"Content-Disposition: {head}\r\n".encode())
