"""Files and reports to put into a MetaDB."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID, uuid4

from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.model import Address, NewFile, NodeReport, Policy, Slice
from tests.postgres import run_sql


def soon() -> Deadline:
    """A deadline no test should come near."""
    return Deadline(120)


ONE_COPY_MORE = Policy(1, 1)


def new_file(
    sizes: tuple[int, ...] = (1000,),
    name: str = "a.bin",
    id: UUID | None = None,
    policy: Policy = ONE_COPY_MORE,
) -> NewFile:
    """A file of slices of the given sizes, on nodes 1, 2 and so on."""
    nodes = tuple(range(1, policy.width + 1))
    return NewFile(
        id=id or uuid4(),
        name=name,
        content_type="application/octet-stream",
        size=sum(sizes),
        sha256=hashlib.sha256(name.encode("utf-8", "replace")).digest(),
        policy=policy,
        block_size=1 << 20,
        slices=tuple(
            Slice(uuid4(), ordinal, size, bytes([ordinal % 256]) * 16, nodes)
            for ordinal, size in enumerate(sizes)
        ),
    )


def report(uuid: UUID | None = None, port: int = 9001, state: str = "active", used: int = 10) -> NodeReport:
    """A heartbeat of a node on this machine."""
    address = Address("127.0.0.1", port)
    return NodeReport(uuid or uuid4(), address, "z1", capacity=1000, used=used, free=1000 - used, state=state)


def register(meta: MetaDB, count: int) -> list[int]:
    """That many live nodes; -> their ids: 1, 2 and so on in a new MetaDB."""
    return [meta.heartbeat(report(port=9001 + i), soon()) for i in range(count)]


def placed(*slices: tuple[int, ...], policy: Policy = ONE_COPY_MORE, name: str = "a.bin") -> NewFile:
    """A file with a slice of 1000 bytes for each tuple of node ids."""
    return NewFile(
        id=uuid4(),
        name=name,
        content_type="text/plain",
        size=1000 * len(slices),
        sha256=hashlib.sha256(name.encode()).digest(),
        policy=policy,
        block_size=1 << 20,
        slices=tuple(Slice(uuid4(), i, 1000, bytes([i % 256]) * 16, nodes) for i, nodes in enumerate(slices)),
    )


def silence_node(url: str, node: int, seconds: float) -> None:
    """Make a node's last heartbeat older, as if the time had passed."""
    run_sql(
        url,
        "UPDATE node SET heartbeat_at = now() - make_interval(secs => :s) WHERE id = :node",
        s=seconds,
        node=node,
    )


#: What the release before runs; its JSON has an object for each slice.
COMMIT_OF_BEFORE = """
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:files AS json)) AS g (
        id uuid, name text, content_type text, size bigint, sha256 text,
        k smallint, m smallint, block_size integer, slices json
    )
), new_file AS (
    INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size)
    SELECT id, name, content_type, size, decode(sha256, 'hex'), k, m, block_size FROM given
    WHERE NOT EXISTS (SELECT FROM trash WHERE trash.id = given.id)
        AND CASE WHEN EXISTS (SELECT FROM file WHERE file.id = given.id) THEN true ELSE require_staying(ARRAY(
            SELECT DISTINCT unnest(s.nodes) FROM json_to_recordset(given.slices) AS s (nodes integer[])
        )) END
    ON CONFLICT (id) DO NOTHING
    RETURNING id, created_at
), new_slice AS (
    INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT s.id, new_file.id, s.ordinal, s.size, decode(s.digest, 'hex'), s.nodes
    FROM new_file JOIN given USING (id), json_to_recordset(given.slices) AS s (
        id uuid, ordinal integer, size bigint, digest text, nodes integer[]
    )
)
SELECT id, created_at FROM new_file
"""


def commit_as_before(url: str, file: NewFile) -> list[list[Any]]:
    """Commit as a service of the release before does; -> its row, none if the file was there already."""
    slices = [
        {"id": str(s.id), "ordinal": s.ordinal, "size": s.size, "digest": s.digest.hex(), "nodes": s.nodes}
        for s in file.slices
    ]
    whole = {"id": str(file.id), "name": file.name, "content_type": file.content_type, "size": file.size}
    how = {"k": file.policy.k, "m": file.policy.m, "block_size": file.block_size, "slices": slices}
    files = json.dumps([whole | how | {"sha256": file.sha256.hex()}])
    return run_sql(url, COMMIT_OF_BEFORE, files=files)
