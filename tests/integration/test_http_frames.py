"""Compressed files that leave as they are stored, for who says that it takes zstd."""

from __future__ import annotations

import hashlib
import subprocess
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import zstandard

from distfs.config.callers import Caller
from distfs.headers.accept import likes_coding
from distfs.routes.body_out import FramesBody
from distfs.routes.messages import Request
from tests.contract.samples import soon
from tests.forms import some_bytes
from tests.service import BLOCK, SLICE, Answer, TestService

TEXT = b"".join(b"%d: a line of many, %d\n" % (n, n * n % 1009) for n in range(40_000))
#: The last block is short, and one in between is not compressed.
MIXED = TEXT[: SLICE + BLOCK] + some_bytes(BLOCK) + TEXT[: BLOCK + 20_000]
TAKES = {"Accept-Encoding": "gzip, deflate, br, zstd"}


@pytest.fixture(scope="module")
def uuid(service: TestService) -> str:
    return put(service, MIXED)


def put(service: TestService, data: bytes, how: str = "zstd") -> str:
    answer = service.ask("PUT", f"/upload/x.txt?compression={how}", data)
    assert answer.status == 201, answer.text
    return answer.text.strip()


def get(service: TestService, uuid: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
    return service.ask(method, f"/download/{uuid}", headers=dict(headers))


def unpacked(body: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        return reader.read()


def test_the_frames_are_what_is_stored_and_say_so(service: TestService, uuid: str) -> None:
    plain, frames = get(service, uuid, {}), get(service, uuid, TAKES)
    assert plain.body == MIXED
    assert "Content-Encoding" not in plain.headers
    assert (frames.status, frames.headers["Content-Encoding"]) == (200, "zstd")
    assert unpacked(frames.body) == MIXED
    assert len(frames.body) < 0.6 * len(MIXED)
    for each in (plain, frames):
        assert each.headers["Vary"] == "Accept-Encoding"
        assert (
            each.headers["Repr-Digest"] == f"sha-256=:{b64encode(hashlib.sha256(MIXED).digest()).decode()}:"
        )
    assert plain.headers["ETag"] != frames.headers["ETag"] == f'"{hashlib.sha256(MIXED).hexdigest()}-zstd"'
    head = get(service, uuid, TAKES, "HEAD")
    assert (head.status, head.body, head.headers["ETag"]) == (200, b"", frames.headers["ETag"])


def test_a_real_client_unpacks_them(service: TestService, uuid: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{service.port}/download/{uuid}"
    done = subprocess.run(["curl", "-sS", "--fail", "--compressed", url], capture_output=True, timeout=60)
    assert done.stdout == MIXED, done.stderr


def test_each_representation_has_its_own_condition(service: TestService, uuid: str) -> None:
    tags = {
        name: get(service, uuid, said, "HEAD").headers["ETag"] for name, said in (("", {}), ("zstd", TAKES))
    }
    for asked, said in (("", {}), ("zstd", TAKES)):
        for known, tag in tags.items():
            answer = get(service, uuid, said | {"If-None-Match": tag})
            assert answer.status == (304 if asked == known else 200)
            assert answer.headers["ETag"] == tags[asked]
            assert answer.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-9"},
        {"Range": "bytes=5-9,70000-70009"},
        {"Want-Max-Size": "100000000"},
        {"Accept-Encoding": "zstd;q=0"},
        {"Accept-Encoding": "zstd;q=0.5, identity"},
        {"Accept-Encoding": "gzip, br"},
        {"Accept-Encoding": "*"},
        {"Accept-Encoding": "zstdx, x-zstd"},
    ],
)
def test_a_range_and_who_does_not_name_it_get_the_file_itself(
    service: TestService, uuid: str, headers: dict[str, str]
) -> None:
    answer = get(service, uuid, TAKES | headers)
    assert "Content-Encoding" not in answer.headers
    assert answer.status == (206 if "Range" in headers else 200)
    if answer.status == 200:
        assert answer.body == MIXED


def test_a_file_that_is_not_compressed_is_as_it_was(service: TestService) -> None:
    uuid = put(service, MIXED, "off")
    answer = get(service, uuid, TAKES)
    assert answer.body == MIXED
    assert not {"Content-Encoding", "Vary"} & {*answer.headers}


@pytest.mark.parametrize("header", ["", ";", "zstd;q=x", "zstd;q=1;q=0", ",,,", "zstd;" * 1000])
def test_what_is_no_list_of_codings_names_none(header: str) -> None:
    assert not likes_coding(header, "zstd")


def test_a_client_that_reads_slowly_is_given_the_same_bytes(service: TestService, uuid: str) -> None:
    """What was not sent is read again, from wherever it was."""
    services = service.app.services
    file = services.meta.file(UUID(uuid), soon())
    request = cast(Request, SimpleNamespace(caller=Caller("127.0.0.1", lambda name: None), environ={}))
    whole = get(service, uuid, TAKES).body
    for back in (1, 1000, 10**9):
        body: Any = FramesBody(services, request, file, soon())
        sent = b""
        for turn in range(1000):
            view = next(body, None)
            if view is None:
                break
            sent += view
            if turn % 3 == 1:
                unsent = min(back, len(view))
                body.rewind(unsent)
                sent = sent[: len(sent) - unsent]
        body.close()
        assert sent == whole, back


def test_of_a_file_of_many_blocks_only_the_last_are_remembered(service: TestService, uuid: str) -> None:
    """A file may have any number of them. Whoever takes back more gets it all the same."""
    services = service.app.services
    file = services.meta.file(UUID(uuid), soon())
    request = cast(Request, SimpleNamespace(caller=Caller("127.0.0.1", lambda name: None), environ={}))
    body: Any = FramesBody(services, request, file, soon())
    sent = b""
    for view in body:
        sent += view
        assert len(body._ends) <= 3
    assert file.size > 5 * file.block_size
    body.rewind(len(sent) - 5)
    assert sent[:5] + b"".join(map(bytes, body)) == sent
    body.close()
