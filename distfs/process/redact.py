"""What of a URL may be read by anybody: not its password. Every text that may hold a URL goes through here."""

from __future__ import annotations

import re

_HIDDEN = "***"
_PASSWORD_IS = re.compile(r"(?i)(password=)[^&]*")
_USER_ENDS = re.compile(r"[:@/?]")
_WORD = re.compile(r"""('[^']*'|"[^"]*"|\s+)""")


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
