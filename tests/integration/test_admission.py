"""An upload is refused from its headers: not a byte of its body is read, and the answer arrives all the same."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import Bytes, Config
from distfs.limits import promises
from distfs.model import Compression, Policy
from tests.contract.litter import eventually
from tests.forms import FORM, file_part, form
from tests.postgres import run_sql
from tests.service import MAX_FILE, SLICE, HttpAddress, TestService, running_service, small_config
from tests.small_space import give_nodes_space

MIB = 1 << 20
SPACE = 6 * MIB  # on each of three nodes: 9 MiB in two copies


@pytest.fixture
def config(metadb_url: str) -> Config:
    """Files of up to 40 MiB by the limits, on few workers."""
    config = small_config(metadb_url)
    policies = {"default": Policy(1, 1), "three": Policy(1, 2)}
    storage = replace(
        config.storage, policies=policies, compression=Compression("off")
    )  # zeros fill the disks
    http = replace(config.http, max_file_size=Bytes(40 * MIB), threads=64)
    return replace(config, http=http, storage=storage)


@pytest.fixture
def serve(
    metadb_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Config], TestService]]:
    """-> a function: config -> a service with three nodes of SPACE bytes."""
    give_nodes_space(monkeypatch, tmp_path, lambda: SPACE)
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running_service(config, tmp_path))


@dataclass
class Sent:
    """What a client that said ``Expect: 100-continue`` came to know, and one that sent its body unasked."""

    status: int
    text: str
    headers: http.client.HTTPMessage


def send_head(service: HttpAddress, *lines: str) -> socket.socket:
    sock = socket.create_connection((service.host, service.port), timeout=30)
    sock.sendall("\r\n".join([*lines, "Host: localhost", "", ""]).encode())
    return sock


def read_answer(sock: socket.socket) -> Sent:
    """The first answer, whatever it is: a 100 would be seen."""
    line = b""
    with sock.makefile("rb") as stream:
        line = stream.readline()
        headers = http.client.parse_headers(stream)
        body = stream.read(int(headers.get("Content-Length", "0")))
    return Sent(int(line.split()[1]), body.decode(), headers)


@contextmanager
def held_upload(service: HttpAddress, size: int) -> Iterator[socket.socket]:
    """A PUT of which the first half has been sent; afterwards its client is gone."""
    with closing(send_head(service, "PUT /upload/held HTTP/1.1", f"Content-Length: {size}")) as sock:
        sock.sendall(bytes(size // 2))
        eventually(lambda: bool(uploads(service)["reservations"]), "the upload has begun")
        yield sock


def uploads(service: HttpAddress) -> dict[str, int]:
    found: dict[str, int] = json.loads(service.ask("GET", "/status").body)["uploads"]
    return found


def assert_nothing_is_held(service: TestService) -> None:
    eventually(
        lambda: not any(uploads(service).values()), "uploads, their bytes and reservations are all given back"
    )
    rows = "SELECT count(*) FROM reservation WHERE ended_at IS NULL"
    eventually(lambda: run_sql(service.config.metadb.url, rows) == [[0]], "MetaDB knows it")
    eventually(lambda: service.app.services.pool.usage().blocks == 0, "every block is back")


REFUSALS = {
    "larger than any file may be": (["Content-Length: 41943041000"], 413, "larger than"),
    "announced to be larger": (
        ["Transfer-Encoding: chunked", "X-Upload-Length: 41943041000"],
        413,
        "send a smaller",
    ),
    "more than the cluster has room for": (
        [f"Content-Length: {20 * MIB}"],
        507,
        "no room for 20.0 MiB as 1+1: at most ",
    ),
    "announced to be more": (["Transfer-Encoding: chunked", f"Upload-Length: {20 * MIB}"], 507, "no room"),
    "announced to be nonsense": (["Transfer-Encoding: chunked", "X-Upload-Length: 1e3"], 400, "whole number"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_no_byte_of_a_refused_body_is_asked_for(
    why: str, serve: Callable[[Config], TestService], config: Config
) -> None:
    headers, status, words = REFUSALS[why]
    service = serve(config)
    with closing(send_head(service, "PUT /upload/x HTTP/1.1", *headers, "Expect: 100-continue")) as sock:
        answer = read_answer(sock)
    assert answer.status == status, answer.text
    assert words in answer.text
    assert answer.text.count("\n") == 1
    assert answer.headers["Connection"] == "close"
    assert service.fragments() == []
    assert_nothing_is_held(service)


@pytest.mark.parametrize("why", REFUSALS)
def test_who_sends_the_body_unasked_still_reads_the_answer(
    why: str, serve: Callable[[Config], TestService], config: Config
) -> None:
    """It sends more than the sockets hold before it looks."""
    headers, status, _ = REFUSALS[why]
    service = serve(config)
    with closing(send_head(service, "PUT /upload/x HTTP/1.1", *headers)) as sock:
        chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n" if "chunked" in headers[0] else bytes(MIB)
        for _ in range(20):
            sock.sendall(chunk)
        assert read_answer(sock).status == status
    assert service.fragments() == []
    assert_nothing_is_held(service)


@pytest.mark.parametrize("budget", ["max_uploads", "max_bytes_in_flight"])
def test_over_the_budget_of_uploads_is_503_with_retry_after(
    budget: str, serve: Callable[[Config], TestService], config: Config
) -> None:
    http = replace(config.http, max_file_size=Bytes(3 * MIB))
    if budget == "max_uploads":
        http = replace(http, max_uploads=2)
    else:
        http = replace(http, max_bytes_in_flight=Bytes(50 * MIB))
    service = serve(replace(config, http=http))
    size = 2 * MIB
    with held_upload(service, size), service.app.services.admission.gate.enter(47 * MIB):
        ask = ["PUT /upload/x HTTP/1.1", f"Content-Length: {size}", "Expect: 100-continue"]
        with closing(send_head(service, *ask)) as sock:
            answer = read_answer(sock)
        assert (answer.status, f"http.{budget}" in answer.text) == (503, True)
        assert int(answer.headers["Retry-After"]) > 0
        assert service.ask("PUT", "/upload/small", b"small files pass").status == 201


def test_the_last_bytes_are_promised_to_one_of_two_services(
    serve: Callable[[Config], TestService], config: Config, tmp_path: Path
) -> None:
    service = serve(config)
    with running_service(config, tmp_path / "second", nodes=0) as second:
        with held_upload(service, 6 * MIB):
            for each in (service, second):
                answer = each.ask("PUT", "/upload/x", bytes(6 * MIB))
                assert (answer.status, "promised to 1 upload under way" in answer.text) == (507, True)
                assert int(answer.headers["Retry-After"]) > 0
            assert second.ask("PUT", "/upload/x", bytes(MIB)).status == 201
        assert_nothing_is_held(service)
        eventually(
            lambda: second.ask("PUT", "/upload/x", bytes(4 * MIB)).status == 201,
            "what the client that went had been promised is free again",
        )


def test_an_upload_that_fits_no_more_is_told_so_in_its_middle(
    serve: Callable[[Config], TestService], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promises, "STEP", MIB)
    service = serve(config)
    with held_upload(service, 6 * MIB) as sock:
        eventually(lambda: uploads(service)["reservations"] >= 3, "half of it has come")
        assert service.ask("PUT", "/upload/other", bytes(4 * MIB)).status == 201
        sock.sendall(bytes(3 * MIB))
        answer = read_answer(sock)
        assert (answer.status, answer.text.startswith("no room for "), answer.text.count("\n")) == (
            507,
            True,
            1,
        )
    assert_nothing_is_held(service)


def test_a_pipe_that_fills_the_cluster_is_refused_and_leaves_nothing(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    service = serve(config)
    answer = service.ask("PUT", "/upload/pipe", (bytes(SLICE) for _ in range(20 * MIB // SLICE)))
    assert answer.status == 507
    eventually(lambda: service.fragments() == [], "its fragments are removed")
    assert_nothing_is_held(service)


def test_a_pipe_longer_than_it_was_announced_is_refused(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    service = serve(config)
    pieces, length = [bytes(100_000)] * 10, "X-Upload-Length"
    assert service.ask("PUT", "/upload/a", iter(pieces), {length: "1000000"}).status == 201
    assert service.ask("PUT", "/upload/b", iter(pieces), {length: "2000000"}).status == 201
    before = service.fragments()
    assert service.ask("PUT", "/upload/c", iter(pieces), {length: "999999"}).status == 413
    eventually(lambda: service.fragments() == before, "its fragments are removed")
    assert_nothing_is_held(service)


@pytest.mark.parametrize("how", ["done", "cut short", "reset", "refused by the form", "too large as it came"])
def test_every_end_gives_back_what_was_promised(
    how: str, serve: Callable[[Config], TestService], config: Config
) -> None:
    service = serve(config)
    if how in ("cut short", "reset"):
        with held_upload(service, 2 * MIB) as sock:
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif how == "done":
        assert service.ask("PUT", "/upload/x", bytes(2 * MIB)).status == 201
    elif how == "refused by the form":
        body = form(('name="wrong"; filename="x"', bytes(2 * MIB)))
        assert service.ask("POST", "/upload", body, FORM).status == 400
    else:
        assert service.ask("PUT", "/upload/x", iter([bytes(2 * MIB)] * 25)).status in (413, 507)
    assert_nothing_is_held(service)


def test_a_form_may_ask_for_more_copies_than_there_is_room_for(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    service = serve(config)
    three = ('name="policy"', b"three")
    answer = service.ask("POST", "/upload", form(three, file_part("x", bytes(4 * MIB))), FORM)
    assert answer.status == 201, answer.text
    answer = service.ask("POST", "/upload", form(three, file_part("x", bytes(2 * MIB))), FORM)
    assert answer.status == 507, answer.text
    assert_nothing_is_held(service)


def test_a_client_says_how_much_it_wants(service: TestService) -> None:
    uuid = service.ask("PUT", "/upload/x", bytes(1000)).text.strip()
    path = f"/download/{uuid}"
    assert service.ask("HEAD", path).headers["Content-Length"] == "1000"
    for method in ("GET", "HEAD"):
        assert service.ask(method, path, headers={"Want-Max-Size": "1000"}).status == 200
        assert service.ask(method, f"{path}?max_size=1000").status == 200
        refused = service.ask(method, path, headers={"Want-Max-Size": "999"})
        assert refused.status == service.ask(method, f"{path}?max_size=999").status == 412
    assert (
        "1,000 bytes would be sent, and at most 999 bytes are wanted"
        in service.ask("GET", f"{path}?max_size=999").text
    )
    part = {"Want-Max-Size": "10", "Range": "bytes=0-9"}
    assert service.ask("GET", path, headers=part).body == bytes(10)
    for size, status in (
        ("0001000", 200),
        ("000999", 412),
        ("000", 412),
        ("0" * 30 + "1000", 200),
        ("9" * 5000, 200),
    ):
        assert service.ask("GET", path, headers={"Want-Max-Size": size}).status == status
        assert service.ask("GET", f"{path}?max_size={size}").status == status
    for size in ("many", "-1", "+5000", "5e3", "5,5", "0x5000", "5000.0", "5_000"):
        assert service.ask("GET", path, headers={"Want-Max-Size": size}).status == 400
        assert service.ask("GET", f"{path}?max_size={size.replace('+', '%2B')}").status == 400
    assert service.ask("GET", f"{path}?max_size=1{'0' * 30}").status == 200


def status_of(service: TestService) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(service.ask("GET", "/status").body)
    return status


def test_status_tells_what_the_process_holds(serve: Callable[[Config], TestService], config: Config) -> None:
    service = serve(config)
    with held_upload(service, 2 * MIB):
        eventually(lambda: status_of(service)["memory"]["blocks"] > 0, "the upload has a block to read into")
        entry = status_of(service)
        assert entry["uploads"] == {"large_uploads": 1, "declared_bytes": 2 * MIB, "reservations": 1}
        assert entry["memory"]["limit"] == config.storage.memory_budget
        assert entry["draining"] is False
    assert config.http.max_file_size > MAX_FILE
    assert_nothing_is_held(service)
