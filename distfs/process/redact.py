"""What of a text may be shown: of a URL no password, of a token nothing, of control characters none as they are.

Every text that may hold a URL goes through here, and every line with what somebody else wrote in it.
"""

from __future__ import annotations

import re

_HIDDEN = "***"
_PASSWORD_IS = re.compile(r"(?i)(password=)[^&]*")
_USER_ENDS = re.compile(r"[:@/?]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TOKEN = re.compile(r"(distfs_)[0-9A-Za-z]{49}")  # as access/token.py makes one
_WORD = re.compile(r"""('[^']*'|"[^"]*"|\s+)""")


def visible(text: str) -> str:
    """``text`` on one line, and harmless to a terminal: control characters as Python writes them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text) if _CONTROL.search(text) else text


def tokenless(text: str) -> str:
    """``text`` without the tokens in it: somebody may have put one where an id belongs."""
    return _TOKEN.sub(rf"\1{_HIDDEN}", text) if "distfs_" in text else text


def redacted(text: str) -> str:
    """``text`` without the password of any URL in it. One ends at a blank, unless it is in quotes."""
    if "://" not in text and "=" not in text:
        return text
    return "".join(map(redacted_word, _WORD.split(text)))


def redacted_word(word: str) -> str:
    """``word``, all of which is one URL, or no more than begins with something else, without its password.

    Rather too much is hidden than too little: what is wrong in a URL is often that its password was not quoted.
    """
    word = _PASSWORD_IS.sub(rf"\1{_HIDDEN}", word)
    scheme, colon, rest = word.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not (colon and at):
        return word
    user = _USER_ENDS.split(credentials, maxsplit=1)[0]
    return f"{scheme}://{user}{'' if user == credentials else ':' + _HIDDEN}@{place}"
