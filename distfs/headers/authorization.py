"""Authorization (RFC 9110, 11.6.2): what somebody shows to be let in."""

from __future__ import annotations

import base64
import binascii

#: As the answer to who shows nothing that counts; the first is what browsers ask their user for.
CHALLENGE = 'Basic realm="distfs", charset="UTF-8", Bearer realm="distfs"'

#: Behind it, for who shows a token that is not good (RFC 6750, 3.1).
BAD = ', error="invalid_token"'


def shows_several(text: str | None) -> bool:
    """Whether a header of ours was sent more than once: hosts join them by commas, which no token has."""
    scheme, _, rest = (text or "").strip(" \t").partition(" ")
    return "," in rest and scheme.lower() in ("bearer", "basic")


def shown_token(text: str | None) -> str | None:
    """What is shown as a token: by Bearer (RFC 6750), or as the password of Basic (RFC 7617), whoever the user is.

    None: nothing is shown, or by a scheme that is not ours. Empty: something that cannot be a token.
    """
    if text and text[:7] == "Bearer ":  # as most have it
        return text[7:].rstrip(" \t").lstrip(" ")
    scheme, _, rest = (text or "").strip(" \t").partition(" ")
    rest = rest.strip(" ")
    match scheme.lower():
        case "bearer":
            return rest
        case "basic":
            try:
                login = base64.b64decode(rest, validate=True).decode()
            except (binascii.Error, ValueError):
                return ""
            return login.partition(":")[2]
    return None
