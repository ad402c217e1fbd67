"""The text of a token: ``distfs_``, 256 random bits, a checksum. Pure.

As GitHub's: the prefix lets scanners find a token that got into the wrong place, the checksum lets them, and us, tell
one from other text without asking anybody. What is kept is a SHA-256 of it: nobody has a dictionary of 256 random
bits, so a slow hash would cost each request and hinder nobody.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib

PREFIX = "distfs_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BYTES = 32
_RANDOM, _CHECKSUM = 43, 6  # digits that hold 256 bits, and 32
LENGTH = len(PREFIX) + _RANDOM + _CHECKSUM


def new_token() -> str:
    """One that nobody has."""
    text = PREFIX + _in_base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _RANDOM)
    return text + _checksum(text)


def hash_of(text: str) -> bytes | None:
    """What is known of a token; None: the text is none."""
    found = hash_at_once(text)
    return found if found is not None and is_whole(text) else None


def is_whole(text: str) -> bool:
    """Whether its checksum is right."""
    return _checksum(text[:-_CHECKSUM]) == text[-_CHECKSUM:]


def hash_at_once(text: str) -> bytes | None:
    """The same without a look at the checksum, which costs more: of a token that is known it is right."""
    if len(text) != LENGTH or not text.startswith(PREFIX) or not text.isascii():
        return None
    return hashlib.sha256(text.encode()).digest()


def _checksum(text: str) -> str:
    """CRC-32 of all before it."""
    return _in_base62(zlib.crc32(text.encode()), _CHECKSUM)


def _in_base62(number: int, digits: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 62)
        text = _DIGITS[digit] + text
    return text.rjust(digits, "0")
