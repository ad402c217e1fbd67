"""A body that is not what its client says it is, before or behind it, is not kept."""

from __future__ import annotations

import hashlib
import socket
from base64 import b64encode
from collections.abc import Callable

import pytest

from tests.forms import FORM, FORM_TYPE, file_part, form, some_bytes
from tests.integration.test_http_upload import download, refused, stored
from tests.service import BLOCK, SLICE, Answer, TestService

HASHES: dict[str, Callable[[bytes], bytes]] = {
    "sha-256": lambda data: hashlib.sha256(data).digest(),
    "sha-512": lambda data: hashlib.sha512(data).digest(),
}
HEADERS = ["Repr-Digest", "Content-Digest"]


def digest(data: bytes, algorithm: str = "sha-256") -> str:
    return f"{algorithm}=:{b64encode(HASHES[algorithm](data)).decode()}:"


DATA, OTHER = some_bytes(2 * BLOCK), some_bytes(2 * BLOCK, 7)
RIGHT, WRONG = digest(DATA), digest(OTHER)


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("header", HEADERS)
def test_a_file_that_is_not_what_its_client_says_is_not_kept(
    service: TestService, header: str, algorithm: str
) -> None:
    says = {header: f"md5=:AAAA:, {digest(DATA, algorithm)}"}
    assert service.ask("PUT", "/upload/x", DATA, says).status == 201
    assert service.ask("PUT", "/upload/x", iter([DATA]), says).status == 201
    before = stored(service)
    for body in (OTHER, iter([OTHER])):
        answer = service.ask("PUT", "/upload/x", body, says)
        refused(service, 400, f"the {algorithm} of the bytes that came is", answer)
        assert HASHES[algorithm](OTHER).hex() in answer.text
    for odd in (f"{algorithm}=:AAAA:", f"{algorithm}=:?:", "nonsense!"):
        refused(service, 400, header, service.ask("PUT", "/upload/x", DATA, {header: odd}))
    assert stored(service) == before
    assert service.ask("PUT", "/upload/x", DATA, {header: "md5=:AAAA:"}).status == 201, "not ours to judge"


@pytest.mark.parametrize(
    "headers",
    [
        {"Repr-Digest": RIGHT, "Content-Digest": WRONG},
        {"Repr-Digest": WRONG, "Content-Digest": RIGHT},
        {"Repr-Digest": f"{RIGHT}, {WRONG}"},
        {"Repr-Digest": f"{RIGHT}, {digest(OTHER, 'sha-512')}"},
        {"Repr-Digest": RIGHT, "Content-Digest": digest(OTHER, "sha-512")},
        {"Repr-Digest": f"x={RIGHT}, {WRONG}"},
    ],
)
def test_one_right_digest_does_not_excuse_a_wrong_one(service: TestService, headers: dict[str, str]) -> None:
    before = stored(service)
    refused(service, 400, "", service.ask("PUT", "/upload/x", DATA, headers))
    assert stored(service) == before


def test_of_two_entries_and_of_two_lines_the_last_counts(service: TestService) -> None:
    assert service.ask("PUT", "/upload/x", DATA, {"Repr-Digest": f"{WRONG}, {RIGHT}"}).status == 201
    lines = "PUT /upload/x HTTP/1.1", "Host: localhost", f"Content-Length: {len(DATA)}", "Connection: close"
    for first, second, status in ((WRONG, RIGHT, 201), (RIGHT, WRONG, 400)):
        head = "\r\n".join((*lines, f"Repr-Digest: {first}", f"repr-digest: {second}", "", ""))
        assert raw(service, head.encode() + DATA) == status


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("size", [10, 3 * SLICE])
def test_a_forms_digest_is_of_the_form(service: TestService, header: str, size: int) -> None:
    data = some_bytes(size)
    body = form(('name="note"', b"x"), file_part("a", data), file_part("b", b""))
    for algorithm in HASHES:
        assert service.ask("POST", "/upload", body, FORM | {header: digest(body, algorithm)}).status == 201
    before = stored(service)
    refused(service, 400, header, service.ask("POST", "/upload", body, FORM | {header: digest(data)}))
    assert stored(service) == before


# --- behind the body ----------------------------------------------------------------------------------


def raw(service: TestService, message: bytes) -> int:
    """The status of the answer to these bytes."""
    with socket.create_connection((service.host, service.port), timeout=60) as sock:
        sock.sendall(message)
        return int(sock.makefile("rb").readline().split()[1])


def chunks(head: str, body: bytes, trailers: list[str], announce: str = "Content-Digest") -> bytes:
    """A chunked request with its trailers; what it announces of them."""
    lines = [f"{head} HTTP/1.1", "Host: localhost", "Connection: close", "Transfer-Encoding: chunked"]
    lines += [f"Trailer: {announce}"] if announce else []
    framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return "\r\n".join(
        [*lines, f"Content-Type: {FORM_TYPE}" if head.startswith("POST") else "A: b", "", ""]
    ).encode() + (framed + "\r\n".join(["0", *trailers, "", ""]).encode())


@pytest.mark.parametrize("size", [0, 10, BLOCK, 3 * SLICE])
@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("head", ["PUT /upload/x", "POST /upload"])
def test_a_digest_behind_a_chunked_body_is_checked(
    service: TestService, head: str, algorithm: str, size: int
) -> None:
    body = some_bytes(size) if head.startswith("PUT") else form(file_part("x", some_bytes(size)))
    right, wrong = digest(body, algorithm), digest(body + b"x", algorithm)
    assert raw(service, chunks(head, body, [f"Content-Digest: {right}"])) == 201
    before = stored(service)
    for trailers in (
        [f"Content-Digest: {wrong}"],
        [f"content-digest:{right}", f"Content-Digest: {wrong}"],
        [f"Content-Digest: {right}", f"Repr-Digest: {wrong}"],
        ["Content-Digest: nonsense!"],
    ):
        assert raw(service, chunks(head, body, trailers)) == 400
    assert stored(service) == before


def test_a_digest_behind_the_body_is_checked_though_nobody_announced_it(service: TestService) -> None:
    assert raw(service, chunks("PUT /upload/x", DATA, [f"Repr-Digest: {RIGHT}"], announce="")) == 201
    assert raw(service, chunks("PUT /upload/x", DATA, [f"Repr-Digest: {WRONG}"], announce="")) == 400
    body = form(file_part("x", DATA))
    assert raw(service, chunks("POST /upload", body, [f"Repr-Digest: {digest(body)}"], announce="")) == 400
    assert raw(service, chunks("POST /upload", body, ["X: y"], announce="")) == 201


def test_a_trailer_is_no_header(service: TestService) -> None:
    assert raw(service, chunks("PUT /upload/x", DATA, ["X-Distfs-Policy: none such", "Host: a b"])) == 201


def test_a_body_that_is_right_by_all_that_is_said_is_kept(service: TestService) -> None:
    both = f"{RIGHT}, {digest(DATA, 'sha-512')}"
    answer: Answer = service.ask("PUT", "/upload/x", DATA, {"Repr-Digest": both, "Content-Digest": both})
    assert download(service, answer.text.strip()) == DATA
