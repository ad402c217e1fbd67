"""HTTP-date (RFC 9110, 5.6.7): three forms, always in GMT. What is none of them is ignored."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAYS = f"(?:{'|'.join(_WEEKDAYS)})"
_LONG_DAYS = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = (
    re.compile(rf"{_DAYS}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"{_LONG_DAYS}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"{_DAYS} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
_LEAP_SECOND = 60


def read(text: str | None, this_year: int | None = None) -> datetime | None:
    """None: there is none, or it is no HTTP-date. ``this_year``: what a year of two digits is near to."""
    text = (text or "").strip(" \t")
    found = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    if found is None:
        return None
    year, day, hour, minute, second = (int(found[n]) for n in ("year", "day", "hour", "minute", "second"))
    if len(found["year"]) == 2:
        year = _with_century(year, this_year or datetime.now(UTC).year)
    if second == _LEAP_SECOND:
        second -= 1  # no file was made in one: its date is never in it
    try:
        return datetime(year, _MONTHS.index(found["month"]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None


def _with_century(year: int, this_year: int) -> int:
    """More than 50 years ahead means the past."""
    year += this_year - this_year % 100
    return year - 100 if year > this_year + 50 else year


def write(moment: datetime) -> str:
    """As every header has it (RFC 9110, 5.6.7): ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    at = moment.astimezone(UTC)
    day = f"{_WEEKDAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year:04d}"
    return f"{day} {at.hour:02d}:{at.minute:02d}:{at.second:02d} GMT"
