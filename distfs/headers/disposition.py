"""Content-Disposition of a download (RFC 6266): how to show a file and what to call it."""

from __future__ import annotations

import re
from urllib.parse import quote

#: Never in a name that a browser shows or makes a path of: separators, control characters, and what turns the
#: direction of text, so that ``exe.gpj`` reads as ``jpg.exe``.
_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_NOT_PLAIN = re.compile(r'[^ -~]|["%]')
_ATTR_CHARS = "!#$&+-.^_`|~"  # RFC 8187's, beyond letters and digits


def for_download(name: str, *, shown: bool) -> str:
    """``shown``: a browser may show it at once. Its name is never a path, nor one of dots only."""
    name = _UNFIT.sub("_", name)
    if not name.strip(" ."):
        name = "_" * max(1, len(name))
    fallback = _NOT_PLAIN.sub("_", name)
    value = f'{"inline" if shown else "attachment"}; filename="{fallback}"'
    if fallback != name:
        value += f"; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"
    return value
