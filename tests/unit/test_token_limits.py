"""What one token may have: counted by token as by address, and both hold."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from uuid import UUID, uuid4

import pytest

from distfs.access.terms import read_terms
from distfs.config.callers import Caller, CallerMatch
from distfs.config.settings import (
    BandwidthConfig,
    Bytes,
    BytesPerSecond,
    CallerRule,
    CallersConfig,
    HttpConfig,
    TokenCaller,
)
from distfs.deadline import Deadline
from distfs.errors import TooMany, TooSlow
from distfs.limits.bandwidth import Bandwidth
from distfs.limits.callers import Ahead, Callers
from distfs.limits.tally import Tally

HTTP = HttpConfig(
    max_connections=8, threads=6, max_uploads=4, max_bytes_in_flight=Bytes(1000), max_file_size=Bytes(900)
)
HALF = CallersConfig()  # this machine itself may have all there is
HERE, THERE = "127.0.0.1", "198.51.100.7"


def no_header(name: str) -> str | None:
    return None


def with_token(address: str = HERE, id: UUID | None = None, **limits: Any) -> TokenCaller:
    terms = read_terms({"owner": "anna", "scopes": ["upload"], **limits})
    return TokenCaller(address, no_header, terms.rule(id or uuid4()))


def begun(stack: ExitStack, way: AbstractContextManager[None]) -> None:
    stack.enter_context(way)


@pytest.mark.parametrize("way", ["download", "upload"])
def test_one_token_has_half_of_the_transfers_wherever_it_comes_from(way: str) -> None:
    callers, one = Callers(HALF, HTTP), uuid4()
    begin = getattr(callers, way)
    with ExitStack() as stack:
        for last in range(3):
            stack.enter_context(begin(with_token(f"198.51.100.{last}", one)))
        with pytest.raises(TooMany, match=rf"token {one} has 3 transfers, as many as one token may"):
            begin(with_token(HERE, one)).__enter__()
        with begin(with_token()), begin(Caller("198.51.100.2", no_header)):
            pass
    assert not callers.tally._held, "nothing is held any more"


def test_many_tokens_at_one_address_have_what_one_address_may() -> None:
    callers = Callers(HALF, HTTP)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(callers.download(with_token(THERE)))
        with pytest.raises(TooMany, match=r"198\.51\.100\.7 has 3 transfers, as many as one address may"):
            callers.download(with_token(THERE)).__enter__()
    assert not callers.tally._held, "who was refused by one holds nothing of the other"


def test_one_token_has_half_of_the_large_uploads_and_of_what_they_declare() -> None:
    callers, one = Callers(HALF, HTTP), with_token()
    with callers.large_upload(one, 300):
        with pytest.raises(TooMany, match=r"300 bytes from token .* 500 bytes that one token may"):
            callers.large_upload(one, 201).__enter__()
        with callers.large_upload(with_token(), 500), callers.large_upload(one, 200):
            pass
    with callers.large_upload(one, 1), callers.large_upload(one, 1):
        with pytest.raises(TooMany, match="has 2 large uploads"):
            callers.large_upload(one, 1).__enter__()
    assert not callers.tally._held


def test_a_token_s_own_limit_of_uploads_is_its_own_and_its_address_has_its_share_still() -> None:
    callers, one = Callers(HALF, HTTP), with_token(THERE, max_uploads=1)
    with callers.upload(one):
        for refused in (callers.upload(one), callers.large_upload(one, 1)):
            with pytest.raises(TooMany, match=r"token .* may have 1 upload at once \(its own limit\)"):
                refused.__enter__()
        with pytest.raises(TooMany, match="1 upload at once"):
            callers.check(one)
        assert callers.by_rule() == {str(one.rule.match): 1}
        with callers.upload(with_token(THERE, max_uploads=9)), callers.download(with_token(THERE)):
            with pytest.raises(TooMany, match=r"198\.51\.100\.7 has 3 transfers"):
                callers.download(with_token(THERE)).__enter__()
    assert not callers.tally._held


def test_the_narrower_of_a_row_s_and_a_token_s_limit_counts() -> None:
    row = CallerRule(CallerMatch.parse("198.51.100.0/24"), max_file_size=Bytes(500), max_uploads=2)
    callers = Callers(CallersConfig(rules=(row,)), HTTP)
    assert callers.largest(with_token(THERE, max_file_size=600)) == 500
    assert callers.largest(with_token(THERE, max_file_size=400)) == 400
    assert callers.largest(with_token(HERE, max_file_size=600)) == 600
    assert callers.largest(with_token(HERE, max_file_size=10**6)) == 900
    with callers.upload(with_token(THERE, max_uploads=5)), callers.upload(with_token(THERE)):
        with pytest.raises(TooMany, match=r"198\.51\.100\.0/24 may have 2 uploads"):
            callers.upload(with_token(THERE, max_uploads=5)).__enter__()
    assert not callers.tally._held


def test_what_is_promised_ahead_is_counted_by_address_and_by_token() -> None:
    tally = Tally()
    one, two = Ahead(tally, ["address a", "token t"]), Ahead(tally, ["address b", "token t"])
    third = Ahead(tally, ["address a", "token u"])
    assert one.take(60, lambda: 100)
    assert not two.take(60, lambda: 100), "by the token"
    assert not third.take(60, lambda: 100), "by the address"
    assert two.take(40, lambda: 100)
    assert third.take(40, lambda: 100)
    two.are(10)
    assert not third.take(60, lambda: 100)
    for each in (one, two, third):
        each.are(0)
    assert not tally._held


def test_a_token_s_cap_holds_as_soon_as_it_is_known() -> None:
    bandwidth = Bandwidth(BandwidthConfig(), CallersConfig())
    one = with_token(cap_in="1")
    assert not bandwidth.capped("in")
    bandwidth.pace([one.rule])
    assert bandwidth.capped("in")
    bandwidth.configure(BandwidthConfig(), CallersConfig())  # as SIGHUP does
    assert bandwidth.capped("in")
    with bandwidth.incoming(io.BytesIO(bytes(1 << 20)), one, Deadline(0.2), None) as slow:
        with pytest.raises(TooSlow):
            slow.readinto(memoryview(bytearray(1 << 20)))
    with bandwidth.incoming(io.BytesIO(bytes(1000)), with_token(), Deadline(60), None) as free:
        assert free.readinto(memoryview(bytearray(1000))) == 1000
    bandwidth.pace([])
    assert not bandwidth.capped("in")
    assert BytesPerSecond(1) == one.rule.cap_in
    bandwidth.close()
