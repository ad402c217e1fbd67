"""Errors that say nothing of what was asked for: to clients as Unavailable is, to distfs another thing."""

from __future__ import annotations

import pytest

from distfs.errors import Busy, Cancelled, DistfsError, OutcomeUnknown, Unavailable
from distfs.formats import wire
from distfs.process.output import NOT_TOLD, code_of
from distfs.transfer.file_upload import refusal


@pytest.mark.parametrize("kind", [Busy, Cancelled, OutcomeUnknown])
def test_what_is_nobodys_fault_is_told_as_unavailable_and_is_none(kind: type[DistfsError]) -> None:
    error = kind("why")
    assert not isinstance(error, Unavailable)
    assert (error.status, error.retry_after) == (503, Unavailable.retry_after)
    assert code_of(error) == NOT_TOLD
    decoder = wire.Decoder()
    decoder.feed(wire.encode_error(error))
    frame = decoder.next_frame()
    assert frame is not None
    assert type(wire.decode_error(frame.header(), "node")) is Unavailable


def test_an_upload_that_was_given_up_is_refused_for_that_and_not_for_its_nodes() -> None:
    given_up = Cancelled("the service stops")
    assert refusal([Unavailable("node 1 is away"), given_up]) is given_up
