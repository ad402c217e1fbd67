"""Forms as clients write them, and what the tests put in."""

from __future__ import annotations

import random

BOUNDARY = "----test-5f0c2d"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
FORM = {"Content-Type": FORM_TYPE}
Part = tuple[str, bytes]


def form(*parts: Part, boundary: str = BOUNDARY, end: bytes = b"\r\n") -> bytes:
    """Each part: (the parameters of its Content-Disposition and any further header lines, data)."""
    body = b""
    for parameters, data in parts:
        head = f"--{boundary}\r\nContent-Disposition: form-data; {parameters}\r\n\r\n"
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--".encode() + end


def file_part(name: str, data: bytes, content_type: str = "text/plain") -> Part:
    return f'name="file"; filename="{name}"\r\nContent-Type: {content_type}', data


def some_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that compress to nothing less and repeat nowhere; the same each time."""
    return random.Random(seed).randbytes(size)
