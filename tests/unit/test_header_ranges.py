"""Range, If-Range's dates and the other dates, as RFC 9110 has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import http_date

from distfs.headers import byte_ranges, dates
from distfs.routes.ranges import MAX_RANGES, Span, wanted

SIZE = 100
LONG = "9" * 60_000


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("bytes=0-0", [(0, 0)]),
        ("bytes=5-", [(5, None)]),
        ("bytes=-5", [(None, 5)]),
        ("bytes=-0", [(None, 0)]),
        ("BYTES=0-1", [(0, 1)]),
        (" bytes=0-1\t", [(0, 1)]),
        ("bytes=007-0008", [(7, 8)]),
        ("bytes= 0-1 ,\t3-4", [(0, 1), (3, 4)]),
        ("bytes=,0-1,,3-4,", [(0, 1), (3, 4)]),
        ("bytes=3-4,0-1", [(3, 4), (0, 1)]),
    ],
)
def test_a_list_of_byte_ranges(text: str, ranges: list[tuple[int | None, int | None]]) -> None:
    assert byte_ranges.read(text) == ranges


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=5",
        "bytes=5-2",
        "bytes=0-1,5-2",
        "bytes=a-b",
        "bytes=0-1,x",
        "bytes=5 - 6",
        "bytes=- 5",
        "bytes=--5",
        "bytes=0--5",
        "bytes=-5-6",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=0x1-2",
        "bytes=1.0-2",
        "bytes=٣-٤",
        "bytes=0-1;x=y",
        "bytes=0-1=",
        "bytes =0-1",
        "bytes:0-1",
        "lines=0-1",
        "bytes=0-1,bytes=3-4",
        '"bytes=0-1"',
    ],
)
def test_what_is_no_list_of_byte_ranges_is_as_if_it_were_not_there(text: str) -> None:
    assert byte_ranges.read(text) is None
    assert wanted(text, SIZE) == []


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("bytes=0-99", [(0, 100)]),
        ("bytes=10-1000", [(10, 100)]),
        (f"bytes=10-{LONG}", [(10, 100)]),
        (f"bytes=-{LONG}", [(0, 100)]),
        ("bytes=-100", [(0, 100)]),
        ("bytes=99-,-0", []),  # behind one up to the end there is nothing
        ("bytes=0-1,-0", [(0, 2)]),
        ("bytes=0-1,200-", [(0, 2)]),
        ("bytes=0-1,5-6,-2", [(0, 2), (5, 7), (98, 100)]),
        ("bytes=0-1,2-3", [(0, 2), (2, 4)]),
        ("bytes=0-5,5-6", []),
        ("bytes=5-6,0-1", []),
        ("bytes=5-,6-", []),
        ("bytes=-5,0-1", []),
        ("bytes=-5,-3", []),
        ("bytes=0-0,-100", []),
        ("bytes=" + ",".join(f"{i}-{i}" for i in range(MAX_RANGES)), [(i, i + 1) for i in range(MAX_RANGES)]),
        ("bytes=" + ",".join(f"{i}-{i}" for i in range(MAX_RANGES + 1)), []),
    ],
)
def test_of_a_file_those_bytes_are_sent_or_else_the_whole(text: str, spans: list[tuple[int, int]]) -> None:
    assert wanted(text, SIZE) == [Span(*span) for span in spans]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bytes=100-", SIZE),
        ("bytes=-0", SIZE),
        (f"bytes={LONG}-", SIZE),
        (f"bytes={LONG}-{LONG}", SIZE),
        ("bytes=100-200,300-", SIZE),
        ("bytes=100-200,-0", SIZE),
        ("bytes=0-", 0),
        ("bytes=-0", 0),
    ],
)
def test_ranges_that_hold_no_byte_of_it_are_416(text: str, size: int) -> None:
    with pytest.raises(RequestedRangeNotSatisfiable):
        wanted(text, size)


def test_the_last_bytes_of_an_empty_file_are_the_whole() -> None:
    assert wanted("bytes=-5", 0) == []
    assert wanted("bytes=3-4,-5", 0) == []


MOMENT = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", MOMENT),
        ("Sunday, 06-Nov-94 08:49:37 GMT", MOMENT),
        ("Sun Nov  6 08:49:37 1994", MOMENT),
        ("Sun Nov 06 08:49:37 1994", MOMENT),
        ("Sun Nov 16 08:49:37 1994", MOMENT.replace(day=16)),
        (" Sun, 06 Nov 1994 08:49:37 GMT\t", MOMENT),
        ("Mon, 06 Nov 1994 08:49:37 GMT", MOMENT),  # whatever day that was
        ("Thu, 29 Feb 2024 00:00:00 GMT", datetime(2024, 2, 29, tzinfo=UTC)),
        ("Sat, 31 Dec 2016 23:59:60 GMT", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("Mon, 01 Jan 0001 00:00:00 GMT", datetime(1, 1, 1, tzinfo=UTC)),
        ("Fri, 31 Dec 9999 23:59:60 GMT", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_date_has_one_of_three_forms(text: str, moment: datetime) -> None:
    assert dates.read(text) == moment


@pytest.mark.parametrize(
    ("year", "this_year", "meant"),
    [
        ("94", 2026, 1994),
        ("26", 2026, 2026),
        ("70", 2026, 2070),
        ("76", 2026, 2076),
        ("77", 2026, 1977),
        ("00", 2026, 2000),
        ("40", 1995, 1940),
        ("99", 2101, 2199 - 100),
    ],
)
def test_a_year_of_two_digits_is_at_most_fifty_ahead(year: str, this_year: int, meant: int) -> None:
    found = dates.read(f"Sunday, 06-Nov-{year} 08:49:37 GMT", this_year)
    assert found == MOMENT.replace(year=meant)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "0",
        "tomorrow",
        "1994-11-06T08:49:37Z",
        "784111777",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 EST",
        "Sun, 06 Nov 1994 08:49:37 +99999999999999",
        "Sun, 06 Nov 1994 08:49:37 GMT GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 Nov 19940 08:49:37 GMT",
        "Sun, 06-Nov-94 08:49:37 GMT",
        "Sunday, 06 Nov 1994 08:49:37 GMT",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun,06 Nov 1994 08:49:37 GMT",
        "06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "Sun, 06 Nov 1994 08:49 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 30 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT\n",
        "Sun Nov 6 08:49:37 1994",
        "Sun Nov  6 08:49:37 1994 GMT",
    ],
)
def test_what_is_no_date_is_none(text: str | None) -> None:
    assert dates.read(text) is None


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        *(datetime(2026, month, 28 - month, month, month, month, tzinfo=UTC) for month in range(1, 13)),
    ],
)
def test_a_moment_is_written_as_it_is_read(moment: datetime) -> None:
    assert dates.write(moment) == http_date(moment)
    assert dates.read(dates.write(moment)) == moment.replace(microsecond=0)
