"""Files in over HTTP: what comes back, what is kept, and what is refused without storing anything."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from base64 import b64encode
from urllib.parse import quote

import pytest

from tests.forms import BOUNDARY, FORM, FORM_TYPE, Part, file_part, form, some_bytes
from tests.service import BLOCK, MAX_FILE, SLICE, Answer, TestService

JSON = {"Accept": "application/json"}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def download(service: TestService, uuid: str) -> bytes:
    answer = service.ask("GET", f"/download/{uuid}")
    assert (answer.status, answer.whole) == (200, True)
    return answer.body


def facts(service: TestService, uuid: str) -> dict[str, object]:
    entry: dict[str, object] = json.loads(service.ask("GET", f"/files/{uuid}").body)
    return entry


def stored(service: TestService) -> tuple[list[str], int]:
    """Everything that is kept: the ids of all files, the number of all fragments."""
    ids: list[str] = []
    after = ""
    while True:
        page = json.loads(service.ask("GET", f"/files?limit=1000{after}").body)
        ids += [entry["uuid"] for entry in page["files"]]
        if not page["next"]:
            return ids, len(service.fragments())
        after = f"&after={page['next']}"


def refused(service: TestService, status: int, words: str, answer: Answer) -> None:
    assert (answer.status, words in answer.text) == (status, True), answer.text
    assert answer.text.count("\n") == 1
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "size", [0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, SLICE, SLICE + 1, 3 * SLICE + 5 * BLOCK // 2]
)
def test_a_file_comes_back_byte_for_byte_by_form_raw_and_chunked(service: TestService, size: int) -> None:
    data = some_bytes(size)
    pieces = [data[i : i + 50_000] for i in range(0, size, 50_000)]
    answers = [
        service.ask("POST", "/upload", form(file_part("a.bin", data)), FORM),
        service.ask("PUT", "/upload/a.bin", data),
        service.ask("PUT", "/upload/a.bin", iter(pieces)),
        service.ask("POST", "/upload", iter([form(file_part("a.bin", data))]), FORM),
    ]
    for answer in answers:
        assert answer.status == 201, answer.text
        uuid = answer.text.removesuffix("\n")
        assert answer.headers["Location"] == f"/download/{uuid}"
        assert answer.headers["Repr-Digest"] == f"sha-256=:{b64encode(sha256(data)).decode()}:"
        assert download(service, uuid) == data
        assert facts(service, uuid)["size"] == size


def test_an_upload_answers_in_json_when_asked(service: TestService) -> None:
    data = b"some text"
    answer = service.ask(
        "PUT", "/upload/note.txt", data, JSON | {"Content-Type": "text/plain; charset=utf-8"}
    )
    entry = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/json"
    told = facts(service, entry["uuid"])
    assert {key: told[key] for key in entry} == entry
    assert told["slices"] == 1
    assert {key: entry[key] for key in ("name", "size", "sha256", "content_type", "download")} == {
        "name": "note.txt",
        "size": 9,
        "sha256": sha256(data).hex(),
        "content_type": "text/plain; charset=utf-8",
        "download": f"/download/{entry['uuid']}",
    }


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0.5, text/plain", False),
        ("application/json;q=0", False),
    ],
)
def test_json_is_for_who_names_it(service: TestService, accept: str, is_json: bool) -> None:
    answer = service.ask("PUT", "/upload/x", b"", {"Accept": accept})
    assert answer.text.startswith("{") == is_json


def test_several_files_in_one_form_come_out_in_order(service: TestService) -> None:
    datas = [some_bytes(SLICE + 17, 1), b"", some_bytes(BLOCK, 2), b"small"]
    parts: list[Part] = [('name="comment"', b"before")]
    parts += [file_part(f"{i}.bin", data) for i, data in enumerate(datas)]
    body = form(*parts, ('name="after"', b"x"))
    answer = service.ask("POST", "/upload", body, FORM)
    uuids = answer.text.split()
    assert answer.headers["Location"] == f"/download/{uuids[0]}"
    assert [download(service, uuid) for uuid in uuids] == datas
    assert [facts(service, uuid)["name"] for uuid in uuids] == [f"{i}.bin" for i in range(4)]
    entries = json.loads(service.ask("POST", "/upload", body, FORM | JSON).body)
    assert [entry["sha256"] for entry in entries] == [sha256(data).hex() for data in datas]


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("plain.txt", "plain.txt"),
        ("Grüße 世界 🎉.txt", "Grüße 世界 🎉.txt"),
        ("a/b/../../etc/passwd", "a/b/../../etc/passwd"),
        ("/absolute", "/absolute"),
        ("//two", "//two"),
        ("ends/", "ends/"),
        ("..", ".."),
        ("50%", "50%"),
        ("what?#", "what?#"),
        ("two\r\nlines\x00", "two__lines_"),
        ("", "file"),
    ],
)
def test_any_name_in_the_url_is_kept_as_data(service: TestService, sent: str, name: str) -> None:
    answer = service.ask("PUT", f"/upload/{quote(sent, safe='')}", b"x")
    assert answer.status == 201, answer.text
    assert facts(service, answer.text.strip())["name"] == name


def test_a_put_without_a_name_is_taken_with_and_without_the_slash(service: TestService) -> None:
    for path in ("/upload", "/upload/"):
        answer = service.ask("PUT", path, b"x")
        assert facts(service, answer.text.strip())["name"] == "file"


def test_a_name_that_is_not_utf_8_does_not_cost_the_upload(service: TestService) -> None:
    answer = service.ask("PUT", "/upload/caf%E9", b"x")
    assert facts(service, answer.text.strip())["name"] == "caf\ufffd"


@pytest.mark.parametrize(
    ("part", "name", "boundary"),
    [
        ('name="file"; filename="ends\\"', "ends\\", BOUNDARY),
        ('name="file"; filename="C:\\me\\a.txt"', "a.txt", BOUNDARY),
        ('name="file"\r\nContent-Type: text/plain', "file", BOUNDARY),
        ('name="file"; filename="x"', "x", "a=b/c"),
    ],
)
def test_what_clients_send_is_taken_as_they_mean_it(
    service: TestService, part: str, name: str, boundary: str
) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = service.ask("POST", "/upload", form((part, b"x"), boundary=boundary), kind)
    assert answer.status == 201, answer.text
    assert facts(service, answer.text.strip())["name"] == name


BAD_FORMS = [
    (form(), "the form is empty"),
    (b"", "the form is empty"),
    (form(('name="other"', b"1")), "only the fields 'other'"),
    (form(('name="upload"; filename="a"', b"1")), "belongs in 'file'"),
    (form(('name="file"', b"text")), "with the @"),
    (form(('name="file"; filename=""', b"")), "no file was chosen"),
    (form(file_part("a", some_bytes(2 * SLICE)))[:-5], "closing boundary"),
    (form(file_part("a", some_bytes(2 * SLICE)), end=b"more"), "closing boundary"),
    (form(file_part("a", some_bytes(2 * SLICE)), ('name="f"; filename="b"', b"1")), "belongs in 'file'"),
    (form(file_part("a", b"small"), file_part("n" * 1025, b"")), "1,024 bytes"),
    (form(file_part("a", b"1"), boundary="other"), "no line with the boundary"),
]


@pytest.mark.parametrize(("body", "words"), BAD_FORMS)
def test_a_bad_form_is_refused_with_400_and_nothing_is_stored(
    service: TestService, body: bytes, words: str
) -> None:
    before = stored(service)
    refused(service, 400, words, service.ask("POST", "/upload", body, FORM))
    assert stored(service) == before


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("application/x-www-form-urlencoded", "not a form"),
        ("", "not a form"),
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=" + "b" * 71, "1 to 70"),
    ],
)
def test_a_post_that_is_no_form_is_told_how_to_be_one(
    service: TestService, content_type: str, words: str
) -> None:
    answer = service.ask("POST", "/upload", b"some bytes", {"Content-Type": content_type})
    refused(service, 400, words, answer)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Range": "bytes 5-9/10"}, "resumed"),
        ({"Content-Type": FORM_TYPE}, "send it by POST, curl -F file=@NAME URL/upload"),
        ({"Content-Type": "Multipart/Form-Data ; boundary=a=b"}, "?raw=1"),
        ({"If-None-Match": "x"}, "no list of entity tags"),
        ({"If-Match": "x"}, "no list of entity tags"),
    ],
)
def test_a_body_that_is_not_the_file_itself_is_refused(
    service: TestService, headers: dict[str, str], words: str
) -> None:
    refused(service, 400, words, service.ask("PUT", "/upload/x", b"12345", headers))


@pytest.mark.parametrize("coding", ["br", "gzip, zstd", "br, identity", "deflate"])
def test_a_body_with_a_content_coding_is_415_and_the_answer_says_what_is_taken(
    service: TestService, coding: str
) -> None:
    answer = service.ask("PUT", "/upload/x", b"12345", {"Content-Encoding": coding})
    refused(service, 415, "Content-Encoding", answer)
    assert answer.headers["Accept-Encoding"] == "identity, gzip, zstd"
    assert service.ask("PUT", "/upload/x", b"12345", {"Content-Encoding": "Identity"}).status == 201


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"If-None-Match": "*"}, 201),
        ({"If-None-Match": '"x"'}, 201),
        ({"If-Match": "*"}, 412),
        ({"If-Match": '"x"'}, 412),
        ({"If-Match": "*", "If-None-Match": "*"}, 412),
    ],
)
def test_an_upload_replaces_nothing_so_its_conditions_hold_or_do_not(
    service: TestService, conditions: dict[str, str], status: int
) -> None:
    assert service.ask("PUT", "/upload/x", b"x", conditions).status == status
    form_answer = service.ask("POST", "/upload", form(file_part("x", b"x")), FORM | conditions)
    assert form_answer.status == status


def test_a_saved_form_is_kept_as_a_file_when_that_is_said(service: TestService) -> None:
    saved = form(file_part("x", b"x"))
    refused(service, 400, "?raw=1", service.ask("PUT", "/upload/x?raw=0", saved, FORM))
    answer = service.ask("PUT", "/upload/x?raw=1", saved, FORM)
    assert download(service, answer.text.strip()) == saved
    curls = {"Content-Type": "application/x-www-form-urlencoded"}  # curl -X PUT --data-binary @x
    assert service.ask("PUT", "/upload/x", saved, curls).status == 201


def test_a_file_larger_than_allowed_is_refused_at_its_declaration_and_at_the_limit(
    service: TestService,
) -> None:
    before = stored(service)
    largest, larger = some_bytes(MAX_FILE), some_bytes(MAX_FILE + 1)
    in_chunks = [larger[i : i + 100_000] for i in range(0, len(larger), 100_000)]
    for answer in (
        service.ask("PUT", "/upload/x", larger),
        service.ask("PUT", "/upload/x", iter(in_chunks)),
        service.ask("POST", "/upload", form(file_part("x", larger)), FORM),
    ):
        refused(service, 413, "max_file_size", answer)
    assert stored(service) == before
    assert service.ask("PUT", "/upload/x", largest).status == 201


@pytest.mark.parametrize("size", [10, SLICE * 3])
@pytest.mark.parametrize("head", ["POST /upload", "PUT /upload/x"])
def test_a_body_cut_short_is_refused_and_nothing_is_stored(
    service: TestService, head: str, size: int
) -> None:
    before = stored(service)
    body = form(file_part("x", some_bytes(size)))
    with socket.create_connection((service.host, service.port), timeout=20) as sock:
        lines = f"{head} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM_TYPE}\r\n"
        lines += f"Content-Length: {len(body) + 1}\r\n\r\n"
        sock.sendall(lines.encode() + body)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert stored(service) == before


def test_the_connection_goes_on_after_uploads_and_refusals(service: TestService) -> None:
    connection = service.connect()
    for size in (10, SLICE * 2, 10):
        data = some_bytes(size)
        connection.request("PUT", "/upload/x", data)
        response = connection.getresponse()
        uuid = response.read().decode().strip()
        assert response.status == 201
        connection.request("POST", "/upload", form(), FORM)
        response = connection.getresponse()
        response.read()
        assert response.status == 400
        connection.request("GET", f"/download/{uuid}")
        assert connection.getresponse().read() == data
    connection.close()


def test_a_file_may_hold_what_looks_like_a_boundary(service: TestService) -> None:
    data = (f"\r\n--{BOUNDARY[:-1]}" + f"\r\n--{BOUNDARY}x" + f"--{BOUNDARY}--\r\n").encode() * 3000
    answer = service.ask("POST", "/upload", form(file_part("x", data)), FORM)
    assert download(service, answer.text.strip()) == data


def test_a_body_whose_length_nobody_says_is_not_taken_for_an_empty_file(service: TestService) -> None:
    with socket.create_connection((service.host, service.port), timeout=30) as sock:
        sock.sendall(b"PUT /upload/x HTTP/1.0\r\n\r\nhello")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").readline().split()[1] == b"411"


def test_a_chunked_file_announced_to_be_too_large_is_not_invited(service: TestService) -> None:
    size = MAX_FILE + 1
    with socket.create_connection((service.host, service.port), timeout=30) as sock:
        lines = (
            "PUT /upload/x HTTP/1.1",
            "Host: localhost",
            "Transfer-Encoding: chunked",
            f"X-Upload-Length: {size}",
        )
        sock.sendall("\r\n".join((*lines, "Expect: 100-continue", "", "")).encode())
        assert sock.makefile("rb").readline().split()[1] == b"413"


def test_what_the_server_itself_refuses_is_told_and_logged_as_the_app_does(
    service: TestService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "distfs.access")
    with socket.create_connection((service.host, service.port), timeout=30) as sock:
        lines = (
            "PUT /upload/x HTTP/1.1",
            "Host: localhost",
            f"Content-Length: {10 * MAX_FILE + (1 << 30)}",
            "Accept: application/json",
        )
        sock.sendall("\r\n".join((*lines, "X-Request-Id: mine", "", "")).encode())
        with sock.makefile("rb") as stream:
            assert stream.readline().split()[1] == b"413"
            headers = http.client.parse_headers(stream)
            problem = json.loads(stream.read(int(headers["Content-Length"])))
    assert headers["Content-Type"] == "application/problem+json"
    assert (problem["status"], problem["request_id"]) == (413, headers["X-Request-Id"]) == (413, "mine")
    [line] = [record for record in caplog.records if record.message == "refused"]
    assert (vars(line)["status"], vars(line)["reason"]) == (413, problem["detail"])


def test_a_page_of_others_stores_nothing_and_is_told_before_its_body(service: TestService) -> None:
    """What any web page can have a browser send: a form."""
    before = service.fragments()
    foreign = {"Origin": "https://evil.example.net", "Sec-Fetch-Site": "cross-site"}
    refused = service.ask("POST", "/upload", form(file_part("x", b"1")), FORM | foreign)
    assert (refused.status, refused.text.count("\n")) == (403, 1)
    with socket.create_connection((service.host, service.port), timeout=20) as sock:
        lines = "PUT /upload/x HTTP/1.1", "Host: localhost", "Origin: null", "Content-Length: 2000000"
        sock.sendall("\r\n".join([*lines, "Expect: 100-continue", "", ""]).encode())
        assert sock.makefile("rb").readline().split()[1] == b"403"
    assert service.fragments() == before
    own = {"Origin": f"http://{service.host}:{service.port}", "Sec-Fetch-Site": "same-origin"}
    assert service.ask("POST", "/upload", form(file_part("x", b"1")), FORM | own).status == 201
