"""How a file is to be kept, chosen an upload; and what is said of its health."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from distfs.deadline import Deadline
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.model import Compression, Policy
from distfs.upkeep.db import UpkeepDB
from tests.forms import FORM, file_part, form, some_bytes
from tests.postgres import database_url, run_sql
from tests.service import SLICE, TestService, running_service, small_config

NAMED = {
    "default": Policy(1, 1),
    "three copies": Policy(1, 2),
    "archive": Policy(2, 1),
    "wide": Policy(4, 2),
}
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def service(postgres: EmbeddedPostgres) -> Iterator[TestService]:
    """Three nodes, and more than one policy."""
    run_sql(postgres.url, "CREATE DATABASE policies TEMPLATE migrated")
    config = small_config(database_url(postgres, "policies"))
    own = {"three copies": Compression("off")}
    config = replace(config, storage=replace(config.storage, policies=NAMED, policy_compression=own))
    with tempfile.TemporaryDirectory(prefix="distfs-test-") as folder:
        with running_service(config, Path(folder)) as running:
            yield running


def policy_of(service: TestService, uuid: str) -> str:
    return str(facts(service, uuid)["policy"])


def facts(service: TestService, uuid: str) -> dict[str, Any]:
    answer = service.ask("GET", f"/files/{uuid}")
    assert answer.status == 200, answer.text
    entry: dict[str, Any] = json.loads(answer.body)
    return entry


TEXT = b"".join(b"line %d of many\n" % n for n in range(30_000))


@pytest.mark.parametrize("policy", ["default", "archive"])
@pytest.mark.parametrize("way", ["form", "raw"])
def test_an_upload_says_whether_it_is_compressed(service: TestService, policy: str, way: str) -> None:
    stored = {}
    for how in ("auto", "off", "zstd"):
        query = f"?policy={policy}&compression={how}"
        if way == "raw":
            answer = service.ask("PUT", f"/upload/text{query}", TEXT, JSON)
        else:
            answer = service.ask("POST", f"/upload{query}", form(file_part("t", TEXT)), FORM | JSON)
        entry = json.loads(answer.body)
        assert answer.status == 201
        assert entry["size"] == len(TEXT)
        assert facts(service, entry["uuid"])["stored"] == entry["stored"]
        assert service.ask("GET", f"/download/{entry['uuid']}").body == TEXT
        stored[how] = entry["stored"]
    assert stored["off"] == len(TEXT)
    assert stored["zstd"] <= stored["auto"] <= len(TEXT)
    assert stored["zstd"] < len(TEXT) / 2


def test_a_policy_may_have_a_compression_of_its_own(service: TestService) -> None:
    entry = json.loads(service.ask("PUT", "/upload/t?policy=three%20copies", TEXT, JSON).body)
    assert entry["stored"] == len(TEXT)
    entry = json.loads(
        service.ask("PUT", "/upload/t?policy=three%20copies&compression=zstd", TEXT, JSON).body
    )
    assert entry["stored"] < len(TEXT) / 2
    body = form(field("policy", "three copies"), file_part("t", TEXT))
    entry = json.loads(service.ask("POST", "/upload", body, FORM | JSON).body)
    assert entry["stored"] == len(TEXT)


def test_a_compression_that_is_none_is_refused(service: TestService) -> None:
    for wrong in ("gzip", "zstd:19", "ZSTD", ""):
        answer = service.ask("PUT", f"/upload/t?compression={wrong}", TEXT)
        assert answer.status == 400
        assert "it is one of auto, off, zstd" in answer.text


def test_a_parameter_that_says_two_things_is_refused(service: TestService) -> None:
    answer = service.ask("PUT", "/upload/t?compression=off&compression=zstd", TEXT)
    assert (answer.status, "two values of compression" in answer.text) == (400, True), answer.text
    assert service.ask("PUT", "/upload/t?compression=off&compression=off", TEXT).status == 201


def field(name: str, value: str) -> tuple[str, bytes]:
    return f'name="{name}"', value.encode()


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("", {}, "1+1"),
        ("?policy=", {}, "1+1"),
        ("?policy=archive", {}, "2+1"),
        ("?policy=three%20copies", {}, "1+2"),
        ("", {"X-Distfs-Policy": "archive"}, "2+1"),
        ("?policy=default", {"X-Distfs-Policy": "archive"}, "1+1"),
    ],
)
def test_the_query_or_a_header_names_the_policy_of_a_raw_upload(
    service: TestService, query: str, headers: Mapping[str, str], expected: str
) -> None:
    data = some_bytes(SLICE + 5)
    answer = service.ask("PUT", f"/upload/x{query}", data, headers)
    assert answer.status == 201, answer.text
    assert policy_of(service, answer.text.strip()) == expected
    assert service.ask("GET", f"/download/{answer.text.strip()}").body == data


def test_a_form_names_the_policy_in_a_field_the_query_or_a_header(service: TestService) -> None:
    body = form(field("policy", "archive"), file_part("a", b"abc"))
    plain = form(file_part("a", b"abc"))
    for path, data, headers, expected in (
        ("/upload", body, FORM, "2+1"),
        ("/upload?policy=default", body, FORM, "2+1"),
        ("/upload?policy=archive", plain, FORM, "2+1"),
        ("/upload", plain, {**FORM, "X-Distfs-Policy": "archive"}, "2+1"),
        ("/upload", plain, FORM, "1+1"),
    ):
        answer = service.ask("POST", path, data, headers)
        assert answer.status == 201, answer.text
        assert policy_of(service, answer.text.strip()) == expected


def test_a_policy_that_comes_after_a_file_is_refused(service: TestService) -> None:
    """Else that file would be kept in another way than its user thinks."""
    body = form(file_part("a", b"abc"), field("policy", "archive"), file_part("b", b"def"))
    before = service.fragments()
    answer = service.ask("POST", "/upload", body, FORM)
    assert (answer.status, service.fragments()) == (400, before)
    assert "'policy' comes after a file: send it before the files" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("PUT", "/upload/x?policy=nonsense", {}, b"x" * SLICE),
        ("PUT", "/upload/x", {"X-Distfs-Policy": "nonsense"}, b"x"),
        ("POST", "/upload?policy=nonsense", FORM, form(file_part("a", b"abc"))),
        ("POST", "/upload", FORM, form(field("policy", "nonsense"), file_part("a", b"abc"))),
    ],
)
def test_an_unknown_policy_is_refused_and_the_known_ones_named(
    service: TestService, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    before = service.fragments()
    answer = service.ask(method, path, body, headers)
    assert (answer.status, service.fragments()) == (400, before)
    assert answer.text == (
        "there is no policy 'nonsense'; there are: default (1+1), three copies (1+2), archive (2+1), wide (4+2)\n"
    )


@pytest.mark.parametrize(
    "named", ["archive, archive", '"archive"', "Archive", "archive;", "2+1", "x" * 60_000]
)
def test_a_policy_is_named_to_the_letter(service: TestService, named: str) -> None:
    answer = service.ask("PUT", "/upload/x", b"x", {"X-Distfs-Policy": named})
    assert answer.status == 400
    assert answer.text.startswith(f"there is no policy {named[:60]!r}; there are: default (1+1)")


@pytest.mark.parametrize("size", [1, 3 * SLICE])
def test_a_policy_that_needs_more_nodes_than_there_are_is_503_in_words(
    service: TestService, size: int
) -> None:
    before = service.fragments()
    answer = service.ask("PUT", "/upload/x?policy=wide", b"x" * size)
    assert (answer.status, service.fragments()) == (503, before)
    assert "5 storage nodes that can take the file are needed and 3 can (3 known, 3 up)" in answer.text


# --- health -------------------------------------------------------------------------------------------


def put(service: TestService, data: bytes, policy: str) -> str:
    answer = service.ask("PUT", f"/upload/x?policy={policy}", data)
    assert answer.status == 201, answer.text
    return answer.text.strip()


def test_the_health_of_a_file_tells_what_is_left_where_and_since_when(service: TestService) -> None:
    uuid = put(service, some_bytes(SLICE + 1), "archive")
    entry = facts(service, uuid)
    health = entry["health"]
    assert (health["redundancy_left"], health["missing_fragments"]) == (1, 0)
    assert health["nodes"] == sorted(node.id for node in service.app.services.meta.nodes(Deadline(60)))
    assert health["last_verified"] == entry["created_at"]


def test_damage_shows_in_the_health_of_its_file_alone(service: TestService) -> None:
    uuid, other = put(service, b"abc", "archive"), put(service, b"def", "archive")
    meta = service.app.services.meta
    [piece] = meta.file(UUID(uuid), Deadline(60)).slices
    assert UpkeepDB(meta).note_damage(piece.id, 0, piece.nodes[0], "a test says so", Deadline(60))
    health = facts(service, uuid)["health"]
    assert (health["redundancy_left"], health["missing_fragments"]) == (0, 1)
    assert facts(service, other)["health"]["redundancy_left"] == 1


def test_an_empty_file_is_healthy(service: TestService) -> None:
    health = facts(service, put(service, b"", "archive"))["health"]
    assert (health["redundancy_left"], health["missing_fragments"], health["nodes"]) == (1, 0, [])
