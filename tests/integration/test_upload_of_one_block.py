"""Uploads whose body fits into one block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.samples import soon
from tests.integration.byte_ways import BLOCK, COPIES, Source, Ways, byte_ways


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()


@pytest.mark.parametrize(("most", "begins"), [(BLOCK, False), (BLOCK + 1, True), (None, True)])
def test_a_body_that_fits_into_a_block_takes_no_place_of_those_that_hold_nodes(
    ways: Ways, most: int | None, begins: bool
) -> None:
    """Its nodes are asked for nothing before all of it is there."""
    asked: list[bool] = []
    with ways.services.uploader.begin(soon(), lambda size, begins: asked.append(begins), most) as session:
        session.add(Source(bytes(BLOCK)), name="x", content_type="", policy=COPIES, size_hint=BLOCK)
        session.commit()
    assert asked[0] is begins
