"""What a node tells of its log, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from distfs.errors import ProtocolError, Refused
from distfs.storage.told_log import pieces
from distfs.telemetry.log_query import OwnFiles


@pytest.mark.parametrize(
    "wanted", [None, {"event": "of.a_later_release"}, {"fruit": "apple"}, {"since": "soon"}]
)
def test_who_asks_for_what_this_release_does_not_know_is_not_to_blame(tmp_path: Path, wanted: object) -> None:
    with pytest.raises(Refused) as caught:
        list(pieces(OwnFiles(tmp_path, "node"), wanted, lambda: None))
    assert not isinstance(caught.value, ProtocolError)
