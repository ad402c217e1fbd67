"""What every answer says to browsers, so that nothing that was stored runs, and no page of others takes what is here.

One table, made once: an answer only adds its row. Pages of others may embed a file that its owner made public; any
other one where their origin is in ``http.cors_origins`` and they ask with CORS (``<img crossorigin>``).
"""

from __future__ import annotations

from collections.abc import Mapping

_EVERY = {
    "X-Content-Type-Options": "nosniff",  # no type is guessed: refusals repeat what was sent
    "Referrer-Policy": "no-referrer",  # a URL may be all that opens a file
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Text and JSON of ours: there is nothing to load.
OURS: Mapping[str, str] = _EVERY | {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox"
}
#: The page of ours with a form, which is sent to here alone. Its URL is told to no other site; a browser that told
#: nothing at all would call it a page without an origin, which may send nothing.
FORM: Mapping[str, str] = _EVERY | {
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
}
#: A file, which nobody here has looked at: it has no origin, runs nothing, and loads nothing. Browsers show pictures,
#: sound and video in a page that they make for it, which loads the file itself and has a style of its own.
STORED: Mapping[str, str] = _EVERY | {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
        "frame-ancestors 'none'; sandbox"
    )
}
#: For an answer that has said it already.
SAID: Mapping[str, str] = {}
#: One that everybody may read.
PUBLIC: Mapping[str, str] = {**STORED, "Cross-Origin-Resource-Policy": "cross-origin"}
