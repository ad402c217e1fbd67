"""A node that joins is used at once: what /readyz says and what an upload does agree."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from distfs.deadline import Deadline
from distfs.meta import MetaDB
from tests.contract.litter import eventually
from tests.service import running_node, running_service, small_config


def test_an_upload_uses_nodes_that_came_after_the_list_was_read(
    tmp_path: Path, metadb_url: str, meta: MetaDB
) -> None:
    config = small_config(metadb_url)
    with running_service(config, tmp_path, nodes=1) as service, ExitStack() as later:
        assert service.ask("PUT", "/upload/x", b"too early").status == 503  # and the list is read
        later.enter_context(running_node(tmp_path / "late", config))
        eventually(lambda: len(meta.nodes(Deadline(60))) == 2, "the second node is registered")
        assert service.ask("GET", "/readyz").status == 200
        assert service.ask("PUT", "/upload/x", b"now").status == 201


def test_a_service_that_is_ready_knows_every_node_that_makes_it_so(
    tmp_path: Path, metadb_url: str, meta: MetaDB
) -> None:
    """Its list was read a moment ago, when two of them were there."""
    config = small_config(metadb_url)
    with running_service(config, tmp_path, nodes=2) as service, ExitStack() as later:
        assert service.ask("PUT", "/upload/x", b"early").status == 201  # and the list is read
        later.enter_context(running_node(tmp_path / "late", config))
        eventually(lambda: len(meta.nodes(Deadline(60))) == 3, "the third node is registered")
        assert service.ask("GET", "/readyz").status == 200
        for _ in range(15):  # each on two of three
            assert service.ask("PUT", "/upload/x", b"now").status == 201
        assert [path for path in (tmp_path / "late" / "data").rglob("*") if path.is_file()]
