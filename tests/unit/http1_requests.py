"""Requests, right ones and wrong ones, for parsers to read: by hand, and generated from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def octets(text: str) -> list[bytes]:
    """A line each, with what Python has for octets that are no letters."""
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in text.strip().split("\n")]


HOST = b"Host: x\r\n"
FIRST = b"GET / HTTP/1.1\r\n" + HOST
GET = FIRST + b"\r\n"
CHUNKED = b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"

METHODS = b"GET PUT POST DELETE HEAD OPTIONS".split()
ODD_METHODS = [b"", *b"CONNECT get G@T BREW".split()]
TARGETS = octets(r"""
/
/a/b%20c?d=e
/upload/d\xc3\xa4tei
//a
""")
ODD_TARGETS = [
    b"",
    b"/" + b"a" * 3000,
    *octets(r"""
*
http://h/x
HTTPS://h:1?x
ftp://h/
h:443
a/b
/a#b
/a\tb
/a b
/\x00
/\x7f
/<>{}|^`\\"
http://
http://u@h/
http://[::1]:8/x
"""),
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]
ODD_VERSIONS = [
    *(b"", b"HTTP/1.1 ", b"HTTP/1.0 "),
    *b"HTTP/1.2 HTTP/2.0 HTTP/0.9 http/1.1 HTTP/1.10 HTTP/01.1".split(),
]
FIELDS = octets(r"""
Accept: */*\r\n
X-A: b\r\n
User-Agent: curl/8\r\n
X-A:c \t\r\n
""")
ODD_FIELDS = octets(r"""
Connection: close\r\n
Connection: keep-alive\r\n
Expect: 100-continue\r\n
X-A:\r\n
X_A: b\r\n
Content-Length: 5\r\n
Content-Length: 5, 5\r\n
Content-Length: 05\r\n
Content-Length: +5\r\n
Content-Length: -5\r\n
Content-Length: 5_0\r\n
Content-Length: 0x5\r\n
Content-Length:\r\n
Content-Length: 5;\r\n
Content-Length: 5 5\r\n
Content-Length: 99999999999999999999999\r\n
Content-Length: 0\r\n
Content-Length: 7\r\n
Content-length : 5\r\n
Content_Length: 7\r\n
transfer-encoding:Chunked\r\n
Transfer-Encoding: gzip, chunked\r\n
Transfer-Encoding: identity\r\n
Transfer-Encoding: chunked, identity\r\n
Transfer-Encoding: xchunked\r\n
Transfer-Encoding:\r\n
Transfer-Encoding : chunked\r\n
Transfer-Encoding: \x0bchunked\r\n
Transfer-Encoding: chunked;q=1\r\n
 folded\r\n
X: a\r\n b\r\n
\tfolded\r\n
no colon\r\n
: no name\r\n
X Y: z\r\n
X: \x00\r\n
X: a\x01b\r\n
X: a\x7fb\r\n
X: \xff\r\n
X: a\rb\r\n
X: a\nb: c\r\n
X: a\n
X: a\r
\xffX: a\r\n
Upgrade: websocket\r\n
Connection: upgrade\r\n
Host: y\r\n
Host: a b\r\n
Host:\r\n
X"Y: z\r\n
""")
ODD_BODIES = [b"hello", b"hell", b"hello!", b"\r\n"]
CHUNKS = octets(r"""
5\r\nhello\r\n0\r\n\r\n
2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n
0\r\n\r\n
""")
ODD_CHUNKS = [
    b"0;" + b"x" * 5000 + b"\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    *octets(r"""
5\nhello\r\n0\r\n\r\n
5\r\nhello\n0\r\n\r\n
5\r\nhello\r\n0\r\n\n
+5\r\nhello\r\n0\r\n\r\n
0x5\r\nhello\r\n0\r\n\r\n
5_\r\nhello\r\n0\r\n\r\n
05\r\nhello\r\n00\r\n\r\n
5 \r\nhello\r\n0\r\n\r\n
 5\r\nhello\r\n0\r\n\r\n
5\r\nhello0\r\n\r\n
5\r\nhello!\r\n0\r\n\r\n
fffffffffffffffff\r\nx
00000000000000000005\r\nhello\r\n0\r\n\r\n
5;\x00\r\nhello\r\n0\r\n\r\n
5;a\rb\r\nhello\r\n0\r\n\r\n
5;a\nb\r\nhello\r\n0\r\n\r\n
5 ; a = "b;c"\r\nhello\r\n0\r\n\r\n
5;;=\r\nhello\r\n0\r\n\r\n
0\r\nContent-Length: 5\r\n\r\n
0\r\nX : y\r\n\r\n
0\r\nX: y\r\n z\r\n\r\n
0\r\n: y\r\n\r\n
0\r\nX\r\n\r\n
0\r\nX: \x00\r\n\r\n
"""),
]
MARKS = [b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b"\xff", b",", b";", b"0", b"%", b"\x7f", b"\x0b"]

#: What the generated ones seldom or never have.
HAND_MADE = [
    *(before + GET for before in (b"\n", b"\r\n", b" ", b"\r")),
    FIRST + b"Upgrade: x\r\nConnection: upgrade\r\n\r\n" + GET,
    *(CHUNKED + b"5;a=" + octet + b"\r\nhello\r\n0\r\n\r\n" + GET for octet in (b"\x7f", b"\xff")),
    FIRST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello" + GET,
    FIRST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + GET,
    FIRST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    FIRST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n" + GET,
    *(FIRST + b"X: y\r\n" * count + b"\r\n" + GET for count in (10, 300)),
    *(b"GET /" + b"a" * count + b" HTTP/1.1\r\n" + HOST + b"\r\n" + GET for count in (8_000, 40_000)),
    FIRST + b"X: " + b"y" * 40_000 + b"\r\n\r\n" + GET,
    FIRST + (b"X: " + b"y" * 30_000 + b"\r\n") * 3 + b"\r\n" + GET,
    b"M" * 40 + b" / HTTP/1.1\r\n" + HOST + b"\r\n" + GET,
    b"POST0 / HTTP/1.1\r\n" + HOST + b"\r\n" + GET,
    b"GET http://\xff/ HTTP/1.1\r\n" + HOST + b"\r\n" + GET,
    b"GET /?\xff HTTP/1.1\r\n" + HOST + b"\r\n" + GET,
    CHUNKED + b"5 ;a=b\r\nhello\r\n0\r\n\r\n" + GET,
    CHUNKED + b"5\r\nhello\r\n0\r\nX : y\r\n\r\n" + GET,
    CHUNKED + b"0\r\nX\r\n\r\n" + GET,
]


def generated(seed: int) -> Iterator[bytes]:
    """A hundred connections: mostly right requests of right parts, some odd ones, some octets changed."""
    draw = random.Random(seed)

    def one_of(right: list[bytes], odd: list[bytes]) -> bytes:
        return draw.choice(odd if draw.random() < 0.06 else right)

    def request() -> bytes:
        first = [one_of(METHODS, ODD_METHODS), one_of(TARGETS, ODD_TARGETS), one_of(VERSIONS, ODD_VERSIONS)]
        fields = [one_of([HOST], ODD_FIELDS), *draw.choices(FIELDS, k=draw.randint(0, 3))]
        fields += draw.choices(ODD_FIELDS, k=draw.random() < 0.2)
        right, odd = [b""], ODD_BODIES
        if (framing := draw.randint(0, 2)) == 1:
            fields, right = [*fields, b"Content-Length: 5\r\n"], [b"hello"]
        elif framing:
            fields, right, odd = [*fields, b"Transfer-Encoding: chunked\r\n"], CHUNKS, ODD_CHUNKS
        return b" ".join(first) + b"\r\n" + b"".join(fields) + b"\r\n" + one_of(right, odd)

    for _ in range(100):
        data = b"".join(request() for _ in range(draw.choice((1, 1, 2))))
        if draw.random() < 0.2:
            at = draw.randrange(len(data))
            data = data[:at] + draw.choice(MARKS) + data[at + draw.randint(0, 1) :]
        yield data + GET
