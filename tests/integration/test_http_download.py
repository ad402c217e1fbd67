"""Files out over HTTP: headers, ranges, conditions, and bytes that cannot be trusted."""

from __future__ import annotations

import email
import email.message
import email.policy
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

from distfs.headers import safety
from tests.forms import FORM, file_part, form, some_bytes
from tests.postgres import run_sql
from tests.service import BLOCK, SLICE, Answer, TestService

SIZE = 2 * SLICE + BLOCK + 100
DATA = some_bytes(SIZE)


def put(service: TestService, data: bytes, name: str = "x", content_type: str = "text/plain") -> str:
    answer = service.ask("PUT", f"/upload/{quote(name, safe='')}", data, {"Content-Type": content_type})
    assert answer.status == 201, answer.text
    return answer.text.strip()


@pytest.fixture(scope="module")
def uuid(service: TestService) -> str:
    return put(service, DATA)


def test_a_download_says_everything_about_the_file(service: TestService, uuid: str) -> None:
    for path in (f"/download/{uuid}", f"/download?uuid={uuid}", f"/download/{uuid.upper()}"):
        answer = service.ask("GET", path)
        assert (answer.status, answer.body) == (200, DATA)
        headers = answer.headers
        digest = hashlib.sha256(DATA)
        assert headers["Content-Length"] == str(SIZE)
        assert headers["Content-Type"] == "text/plain"
        assert headers["Content-Disposition"] == 'inline; filename="x"'
        assert headers["ETag"] == f'"{digest.hexdigest()}"'
        assert headers["Repr-Digest"] == f"sha-256=:{b64encode(digest.digest()).decode()}:"
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Last-Modified"].endswith(" GMT")


def test_head_says_the_same_without_the_bytes(service: TestService, uuid: str) -> None:
    connection = service.connect()
    heads = []
    for method in ("HEAD", "GET", "HEAD"):
        connection.request(method, f"/download/{uuid}", headers={"X-Request-Id": "same"})
        response = connection.getresponse()
        assert len(response.read()) == (SIZE if method == "GET" else 0)
        heads.append({k: v for k, v in response.getheaders() if k != "Date"})
    connection.close()
    assert heads[0] == heads[1] == heads[2]


def test_an_unknown_file_is_404_and_a_malformed_id_400(service: TestService) -> None:
    for method in ("GET", "HEAD"):
        assert service.ask(method, f"/download/{uuid4()}").status == 404
        for bad in ("x", "1234", "0" * 36, str(uuid4())[:-1], uuid4().hex, "%7B" + str(uuid4()) + "%7D"):
            assert service.ask(method, f"/download/{bad}").status == 400
            assert service.ask(method, f"/download?uuid={bad}").status == 400
        assert service.ask(method, "/download").status == 400
    assert "no file" in service.ask("GET", f"/download/{uuid4()}").text
    assert "'x' is not a file's id" in service.ask("GET", "/download/x").text


SET_TYPE = "UPDATE file SET content_type = :kind WHERE id = :id"

#: Browsers take a list's last type.
LIES = ["text/plain; x=x, text/html", "image/png;,text/html", 'text/plain; x="', "text/plain, image/svg+xml"]


@pytest.mark.parametrize(
    ("content_type", "kept", "kind"),
    [
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8", "inline"),
        ("image/png", "image/png", "inline"),
        ("video/mp4", "video/mp4", "inline"),
        ("text/html", "text/html", "attachment"),
        ("Text/HTML; charset=utf-8", "text/html; charset=utf-8", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("IMAGE/SVG+XML", "image/svg+xml", "attachment"),
        *((lie, "application/octet-stream", "attachment") for lie in LIES),
        ("application/xhtml+xml", "application/xhtml+xml", "attachment"),
        ("application/javascript", "application/javascript", "attachment"),
        ("text/plain\tx", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
    ],
)
def test_what_a_browser_would_execute_is_an_attachment(
    service: TestService, content_type: str, kept: str, kind: str
) -> None:
    answer = service.ask("GET", f"/download/{put(service, b'x', 'n', content_type)}")
    assert answer.headers["Content-Type"] == kept
    assert answer.headers["Content-Disposition"].split(";")[0] == kind


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("way", ["a part's", "of the release before"])
def test_no_way_in_makes_a_lie_a_type(service: TestService, lie: str, way: str) -> None:
    if way == "a part's":
        uuid = service.ask("POST", "/upload", form(file_part("n", b"x" * 50, lie)), FORM).text.strip()
    else:
        uuid = put(service, b"x" * 50)
        run_sql(service.config.metadb.url, SET_TYPE, kind=lie, id=uuid)
    for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=0-1,5-6"}):
        answer = service.ask("GET", f"/download/{uuid}", headers=headers)
        kind = "application/octet-stream"
        assert answer.headers.get_content_type() in (kind, "multipart/byteranges")
        assert answer.headers["Content-Disposition"] == 'attachment; filename="n"' or way != "a part's"
        assert answer.headers["Content-Disposition"].startswith("attachment;")
        if "," in headers.get("Range", ""):
            assert [part[1] for part in parts_of(answer)] == [kind, kind]
            assert answer.body.count(b"\r\nX-Content-Type-Options: nosniff\r\n") == 2
    assert json.loads(service.ask("GET", f"/files/{uuid}").body)["content_type"] == kind


def test_every_answer_about_a_file_keeps_browsers_from_running_it(service: TestService, uuid: str) -> None:
    tag = service.ask("HEAD", f"/download/{uuid}").headers["ETag"]
    for method, headers, status in (
        ("GET", {}, 200),
        ("HEAD", {}, 200),
        ("GET", {"Range": "bytes=0-1"}, 206),
        ("GET", {"Range": "bytes=0-1,5-6"}, 206),
        ("GET", {"If-None-Match": tag}, 304),
        ("GET", {"If-Match": '"x"'}, 412),
    ):
        answer = service.ask(method, f"/download/{uuid}", headers=headers)
        assert answer.status == status
        assert safety.STORED.items() <= dict(answer.headers).items()
        assert answer.headers.get_all("Server") == ["distfs"], "its version is nobody's business"


@pytest.mark.parametrize("path", ["/nothing", "/download/<script>", "/download", "/files?limit=<b>", "/"])
def test_every_other_answer_keeps_browsers_from_it_too(service: TestService, path: str) -> None:
    answer = service.ask("GET", quote(path, safe="/?="))
    assert safety.OURS.items() <= dict(answer.headers).items()


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        *((kind, False) for kind in ("text/html", "image/svg+xml", "application/xml", "text/xml")),
        *((kind, False) for kind in ("application/pdf", "text/javascript", "application/xhtml+xml")),
        *((kind, False) for kind in ("multipart/related", "message/rfc822", "x/unknown", "text/css", "")),
        *((kind, False) for kind in ("text/html; charset=utf-7", "text/plain, text/html", "TEXT/HTML")),
        *((kind, True) for kind in ("text/plain", "image/png", "image/jpeg", "image/gif", "image/webp")),
        *((kind, True) for kind in ("image/avif", "audio/mpeg", "video/mp4", "text/plain; charset=utf-8")),
    ],
)
def test_only_what_runs_nothing_is_shown_whatever_a_link_asks_for(
    service: TestService, kind: str, shown: bool
) -> None:
    uuid = service.ask("PUT", "/upload/page", b"<script>", {"Content-Type": kind}).text.strip()
    asked = (
        "inline=1&disposition=inline&download=0&response-content-disposition=inline&content_type=text/html"
    )
    for path in (f"/download/{uuid}?{asked}", f"/download?uuid={uuid}&{asked}"):
        answer = service.ask("GET", path)
        assert answer.status == 200
        assert answer.headers["Content-Disposition"].startswith("inline;" if shown else "attachment;")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert shown is False or answer.headers["Content-Type"] == kind


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("a b.txt", 'filename="a b.txt"'),
        ("naïve €.txt", "filename=\"na_ve _.txt\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.txt"),
        ('say "hi"', "filename=\"say _hi_\"; filename*=UTF-8''say%20%22hi%22"),
        ("100%25", "filename=\"100_25\"; filename*=UTF-8''100%2525"),
        ("../../etc/passwd", 'filename=".._.._etc_passwd"'),
        ("C:\\x", 'filename="C:_x"'),
        ("photo\u202egpj.exe", 'filename="photo_gpj.exe"'),
        ("..", 'filename="__"'),
        ("a;b=c", 'filename="a;b=c"'),
    ],
)
def test_the_name_is_offered_by_rfc_6266(service: TestService, name: str, parameters: str) -> None:
    answer = service.ask("GET", f"/download/{put(service, b'x', name)}")
    assert answer.headers["Content-Disposition"] == f"inline; {parameters}"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=10-19", 10, 20),
        (f"bytes={BLOCK - 1}-{BLOCK}", BLOCK - 1, BLOCK + 1),
        (f"bytes={SLICE - 5}-{2 * SLICE + 5}", SLICE - 5, 2 * SLICE + 6),
        (f"bytes={SLICE}-{SLICE + BLOCK - 1}", SLICE, SLICE + BLOCK),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes={SIZE - 1}-99999999", SIZE - 1, SIZE),
        (f"bytes=10-{'9' * 5000}", 10, SIZE),
        ("bytes=,10-19,,", 10, 20),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{BLOCK + 200}", SIZE - BLOCK - 200, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
    ],
)
def test_a_range_is_those_bytes(service: TestService, uuid: str, asked: str, start: int, stop: int) -> None:
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": asked})
    assert answer.body == DATA[start:stop]
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.status == 206, "also of all the bytes: players ask so whether they may seek"
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=99999999-", f"bytes={'9' * 5000}-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416_with_the_size(service: TestService, uuid: str, asked: str) -> None:
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": asked})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


def parts_of(answer: Answer) -> list[tuple[str | None, str, bytes]]:
    """Content-Range, type and bytes of each part of a multipart/byteranges answer."""
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.body, policy=email.policy.HTTP)
    parts = [part for part in message.iter_parts() if isinstance(part, email.message.EmailMessage)]
    return [(part["Content-Range"], part.get_content_type(), _payload(part)) for part in parts]


def _payload(part: email.message.EmailMessage) -> bytes:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload


def test_several_ranges_are_one_answer_of_several_parts(service: TestService, uuid: str) -> None:
    spans = [(0, 1), (SLICE - 2, SLICE + 3), (2 * SLICE, SIZE - 7), (SIZE - 5, SIZE)]
    first, second, third, _ = (f"{start}-{stop - 1}" for start, stop in spans)
    asked = {"Range": f"bytes={first}, {second},{third},-5"}
    answer = service.ask("GET", f"/download/{uuid}", headers=asked)
    assert answer.status == 206
    assert "Content-Range" not in answer.headers
    assert answer.headers["Content-Length"] == str(len(answer.body))
    expected = [(f"bytes {a}-{b - 1}/{SIZE}", "text/plain", DATA[a:b]) for a, b in spans]
    assert parts_of(answer) == expected


def test_of_several_ranges_those_beyond_the_end_are_left_out(service: TestService, uuid: str) -> None:
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": f"bytes=1-2,{SIZE}-"})
    assert (answer.status, answer.body) == (206, DATA[1:3])
    assert answer.headers["Content-Range"] == f"bytes 1-2/{SIZE}"
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": f"bytes={SIZE}-{SIZE},-0"})
    assert answer.status == 416, "of the last 0 bytes there is none"
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": f"bytes={SIZE}-{SIZE},{SIZE + 1}-"})
    assert answer.status == 416


def test_a_size_limit_counts_all_that_would_be_sent(service: TestService, uuid: str) -> None:
    asked = {"Range": "bytes=0-9,20-29"}
    length = int(service.ask("GET", f"/download/{uuid}", headers=asked).headers["Content-Length"])
    for most, status in ((length, 206), (length - 1, 412)):
        assert service.ask("GET", f"/download/{uuid}?max_size={most}", headers=asked).status == status


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=5-2",
        "bytes=a-b",
        "bytes=",
        "lines=1-2",
        "0-5",
        "bytes=5-6,0-1",
        "bytes=0-9,5-6",
        f"bytes=0-0,-{SIZE}",
        "bytes=" + ",".join(f"{i}-{i}" for i in range(0, 130, 2)),
    ],
)
def test_what_is_no_list_of_ranges_in_order_gets_the_whole(
    service: TestService, uuid: str, asked: str
) -> None:
    answer = service.ask("GET", f"/download/{uuid}", headers={"Range": asked})
    assert (answer.status, answer.body) == (200, DATA)


def test_if_range_gives_the_range_only_of_the_same_file(service: TestService, uuid: str) -> None:
    tag = service.ask("HEAD", f"/download/{uuid}").headers["ETag"]
    for condition, status in ((tag, 206), ('"other"', 200), ("Mon, 01 Jan 2001 00:00:00 GMT", 200)):
        headers = {"Range": "bytes=1-2", "If-Range": condition}
        answer = service.ask("GET", f"/download/{uuid}", headers=headers)
        assert (answer.status, len(answer.body)) == (status, 2 if status == 206 else SIZE)


def test_a_client_that_has_the_file_is_told_so(service: TestService, uuid: str) -> None:
    head = service.ask("HEAD", f"/download/{uuid}").headers
    tag, modified = head["ETag"], head["Last-Modified"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": modified, "If-None-Match": '"x"'}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, 412),
    ):
        answer = service.ask("GET", f"/download/{uuid}", headers=headers)
        assert (answer.status, len(answer.body)) == (status, SIZE if status == 200 else 0), headers
        assert answer.headers["ETag"] == tag


@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since", "If-Range"])
@pytest.mark.parametrize(
    "date",
    [
        "Sun, 06 Nov 2094 08:49:37 +99999999999999",
        "Sun, 06 Nov 2094 08:49:37",
        "Sun, 06 Nov 2094 08:49:37 EST",
        "tomorrow",
    ],
)
def test_a_date_that_is_none_is_ignored(service: TestService, uuid: str, name: str, date: str) -> None:
    answer = service.ask("GET", f"/download/{uuid}", headers={name: date, "Range": "bytes=0-"})
    assert answer.status == (200 if name == "If-Range" else 206)
    assert answer.body == DATA


def test_an_empty_file_downloads_as_nothing(service: TestService) -> None:
    uuid = put(service, b"")
    answer = service.ask("GET", f"/download/{uuid}")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert service.ask("GET", f"/download/{uuid}", headers={"Range": "bytes=0-"}).status == 416
    assert service.ask("GET", f"/download/{uuid}", headers={"Range": "bytes=-5"}).status == 200


@contextmanager
def damaged(paths: list[Path], offset: int) -> Iterator[None]:
    """One byte of each fragment is another one."""
    before = [path.read_bytes() for path in paths]
    for path, data in zip(paths, before):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
    yield
    for path, data in zip(paths, before):
        path.write_bytes(data)


def fragments_with(service: TestService, data: bytes) -> list[Path]:
    """The fragments that hold these bytes."""
    found = [path for path in service.fragments() if data in path.read_bytes()]
    assert len(found) == 2
    return found


def at(path: Path, data: bytes) -> int:
    match = re.search(re.escape(data), path.read_bytes())
    assert match
    return match.start()


def test_a_damaged_copy_is_replaced_by_the_other(service: TestService) -> None:
    data = some_bytes(2 * SLICE, 7)
    uuid = put(service, data)
    probe = data[SLICE + BLOCK : SLICE + BLOCK + 64]
    for path in fragments_with(service, probe):
        with damaged([path], at(path, probe)):
            for _ in range(4):  # copies are read in any order
                assert service.ask("GET", f"/download/{uuid}").body == data


def test_a_file_whose_first_block_is_damaged_everywhere_is_a_clean_502(
    service: TestService, caplog: pytest.LogCaptureFixture
) -> None:
    data = some_bytes(SLICE, 8)
    uuid = put(service, data)
    paths = fragments_with(service, data[:64])
    with damaged(paths, at(paths[0], data[:64])):
        answer = service.ask("GET", f"/download/{uuid}")
        assert answer.status in (502, 503), answer.text
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.text.count("\n") == 1
        assert "fragment" not in answer.text, "what is where is for the log"
        logged = [r.getMessage() for r in caplog.records if r.name == "distfs.http"]
        assert any("fragment 0: " in line and "fragment 1: " in line for line in logged)
        assert service.ask("HEAD", f"/download/{uuid}").status == 200
    assert service.ask("GET", f"/download/{uuid}").body == data


@pytest.mark.parametrize("where", [2 * BLOCK, SLICE, SLICE + 3 * BLOCK])
def test_the_connection_is_cut_before_the_first_wrong_byte(service: TestService, where: int) -> None:
    data = some_bytes(2 * SLICE + BLOCK, where)
    uuid = put(service, data)
    probe = data[where + 100 : where + 164]
    paths = fragments_with(service, probe)
    with damaged(paths, at(paths[0], probe)):
        answer = service.ask("GET", f"/download/{uuid}")
        assert (answer.status, answer.whole) == (200, False)
        assert len(answer.body) <= where
        assert data.startswith(answer.body)
        after = {"Range": f"bytes={where + BLOCK}-"}
        assert service.ask("GET", f"/download/{uuid}", headers=after).body == data[where + BLOCK :]
    assert service.ask("GET", f"/download/{uuid}").body == data


def test_clients_that_hang_up_early_leave_room_for_the_next(service: TestService) -> None:
    big = put(service, some_bytes(2_900_000, 10))
    for _ in range(70):  # more than there are blocks and connections
        connection = service.connect()
        connection.request("GET", f"/download/{big}")
        connection.getresponse().read(10)
        connection.close()
    assert service.ask("GET", f"/download/{big}").body == some_bytes(2_900_000, 10)
