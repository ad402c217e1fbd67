"""What is fed hostile bytes, and what must hold whatever they are."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from distfs import audit
from distfs.access.terms import as_entry, in_words, read_terms
from distfs.body.ingest import files_in_form
from distfs.body.multipart import FormLimits
from distfs.commands.audit import verify
from distfs.config import file as configuration
from distfs.config import renamed
from distfs.config.settings import Bytes, Config, HttpConfig, MetaDBConfig, Seconds
from distfs.errors import DistfsError, ProtocolError
from distfs.formats import fixed, wire
from distfs.formats.fragment import CellEntry
from distfs.host.head import Head
from distfs.host.http1 import Parser
from distfs.host.http1_events import End, Failed, OtherProtocol, Pause
from distfs.http_app import HttpApp
from distfs.metadb.url import MetaURL
from distfs.model import FragmentId
from distfs.routes.messages import Request
from distfs.services import build
from tests.fuzz import fragments, greeting, headers, links, packed
from tests.fuzz.guard import Target

HTTP = HttpConfig(
    max_file_size=Bytes(4096),
    max_form_overhead=Bytes(1024),
    max_header=Bytes(2048),
    max_header_line=Bytes(512),
    max_header_lines=16,
    max_chunk_line=Bytes(64),
    max_trailer=Bytes(256),
)
FORM = FormLimits(4096, 2048, 20)
BOUNDARY = b"multipart/form-data; boundary=bound"


@dataclass(frozen=True)
class Fed:
    """A target, inputs to begin with, and words that inputs are made of."""

    target: Target
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def of_a_kind(error: DistfsError) -> type[DistfsError]:
    """Its class, which is to be one of those below."""
    if type(error) is DistfsError:
        raise AssertionError(f"an error that is not classified: {error}") from error
    return type(error)


# --- HTTP ----------------------------------------------------------------------------------------


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def requests(data: bytes, size: int) -> list[tuple[object, ...]]:
    """What the parser makes of bytes that come ``size`` at a time: heads, bodies, ends, and how it ended."""
    parser, body = Parser(HTTP), bytearray()
    found: list[tuple[object, ...]] = []
    for piece in pieces(data, size):
        parser.receive(piece)
        while True:
            event = parser.next_event()
            if isinstance(event, Head):
                found.append(
                    (
                        "head",
                        event.method,
                        event.path,
                        event.query,
                        event.headers,
                        event.length,
                        event.chunked,
                    )
                )
            elif isinstance(event, memoryview):
                body += event
            elif isinstance(event, End):
                found.append(("end", bytes(body), dict(event.trailers)))
                body.clear()
            elif isinstance(event, Failed):
                assert 400 <= event.error.status < 600
                of_a_kind(event.error)
                return [*found, ("failed", bytes(body))]
            elif isinstance(event, OtherProtocol):
                return [*found, ("other", event.name)]
            elif event is Pause.DONE:
                if found[-1][0] != "end" or len(found) > 100 or not _goes_on(parser):
                    return found
                parser.next_request()
            else:
                break
    return [*found, ("more", bytes(body))]


def _goes_on(parser: Parser) -> bool:
    return parser.state.name == "DONE"


def http_head(data: bytes) -> None:
    """However the bytes are cut, they are the same requests."""
    whole = requests(data, max(1, len(data)))
    for size in (1, 7):
        cut = requests(data, size)
        assert cut == whole, (cut, whole)


def chunked(data: bytes) -> None:
    http_head(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)


@lru_cache(maxsize=1)
def _app() -> HttpApp:
    """One whose MetaDB is not there; it needs tokens, so all that is read before one is known is."""
    url = "postgresql://nobody@127.0.0.1:1/none?sslmode=disable"
    metadb = MetaDBConfig(url=url, patience=Seconds(0), connect_timeout=Seconds(1))
    return HttpApp(build(Config(http=HTTP, metadb=metadb)))


def app(data: bytes) -> None:
    """Whatever a request says, it is answered, and never by an error of ours."""
    parser = Parser(HTTP)
    parser.receive(data)
    head = parser.next_event()
    if not isinstance(head, Head):
        return
    environ = {
        **head.headers,
        "REQUEST_METHOD": head.method,
        "PATH_INFO": head.path,
        "QUERY_STRING": head.query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(data.partition(b"\r\n\r\n")[2]),
        "wsgi.input_terminated": True,
    }
    told: list[object] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], None]:
        told.append(status)
        text = "".join(name + value for name, value in headers)
        assert text.isascii()
        assert not set("\r\n\0") & set(text)
        return lambda data: None

    answer = _app()(environ, start_response)
    b"".join(answer)
    answer.close()  # type: ignore[attr-defined]
    assert told != ["500 Internal Server Error"]


def terms(data: bytes) -> None:
    """A token that somebody asks for, as JSON. What is taken is of the types that it is kept in."""
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/tokens",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(data),
        "CONTENT_LENGTH": str(len(data)),
    }
    read = read_terms(Request(environ).json_object())
    assert read.owner.isprintable()
    assert 0 <= read.quota < 1 << 63
    assert 0 <= read.max_uploads < 1 << 31
    assert 0 <= read.expires < 1e10
    json.dumps(as_entry(read))
    assert "\n" not in in_words(read)


class Slow:
    """A body that comes ``size`` bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readinto(self, view: memoryview) -> int:
        part = self._data[: len(view)]
        view[: len(part)] = part
        self._data = self._data[len(part) :]
        return len(part)


def files(data: bytes, content_type: str, step: int) -> list[object]:
    """What a form has in it, read ``step`` bytes at a time; at its end, the class of its error."""
    found: list[object] = []
    view = memoryview(bytearray(step))
    try:
        for each in files_in_form(Slow(data), content_type, FORM):
            content = bytearray()
            while count := each.readinto(view):
                content += view[:count]
            found.append((each.name, each.content_type, each.fields, bytes(content)))
    except DistfsError as e:
        found.append(of_a_kind(e))
    return found


def multipart(data: bytes) -> None:
    """The first line is the Content-Type, if it looks like one."""
    said, _, body = data.partition(b"\n") if data.startswith(b"multipart/") else (BOUNDARY, b"", data)
    content_type = said.decode("latin-1")
    whole = files(body, content_type, 1 << 16)
    for step in (1500, 1024, 100):
        assert files(body, content_type, step) == whole, (step, files(body, content_type, step), whole)


# --- between services and nodes ---------------------------------------------------------------------

_FIXED: dict[wire.Type, Callable[[bytes], object]] = {
    wire.Type.GET: fixed.Get.decode,
    wire.Type.PUT: fixed.Put.decode,
    wire.Type.WHOLE: fixed.Whole.decode,
    wire.Type.END: fixed.End.decode,
    wire.Type.STORED: fixed.Stored.decode,
    wire.Type.CELLS: fixed.Cells.decode,
    wire.Type.CELL: CellEntry.unpack,
}


def frames(data: bytes) -> None:
    """Frames without their bodies. What is read and written again is the same."""
    decoder = wire.Decoder()
    for piece in pieces(data, 5):
        decoder.feed(piece)
        while frame := decoder.next_frame():
            assert frame.body_length <= wire.MAX_FRAGMENT
            read_frame(frame)


def read_frame(frame: wire.Frame) -> None:
    if frame.type in _FIXED:
        read = _FIXED[frame.type](frame.raw)
        assert _written(_FIXED[frame.type](_written(read))) == _written(read)
        if isinstance(read, fixed.Put | fixed.Whole):
            assert "\n" not in read.name
            read.fragment()
        return
    header = frame.header()
    if frame.type is wire.Type.ERROR:
        assert isinstance(wire.decode_error(header, "a node"), DistfsError)
    else:
        assert wire.decode_id(wire.encode_id(id := wire.decode_id(header))) == id


def _written(read: object) -> bytes:
    return read.pack() if isinstance(read, CellEntry) else read.encode()  # type: ignore[attr-defined]


# --- files of an operator -----------------------------------------------------------------------------


def config(data: bytes) -> None:
    """A configuration is right, or told in one line what is wrong."""
    text = data.decode("utf-8", "replace")
    configuration.parse(configuration._yaml(text, "config.yml"))


def environment(data: bytes) -> None:
    name, _, value = data.decode("utf-8", "replace").partition("=")
    given = {f"DISTFS_{name}": value}
    old_names = renamed.in_environment(given, lambda *_: None)
    configuration.parse(configuration._with_environment({}, given, old_names))


def metadb_url(data: bytes) -> None:
    MetaURL.parse(data.decode("utf-8", "replace"))


def audit_log(data: bytes) -> None:
    """Whatever is in the file, it goes on with a line that is right, and verify comes to an end."""
    with tempfile.TemporaryDirectory(prefix="distfs-fuzz-") as folder:
        path = Path(folder) / "audit.log"
        path.write_bytes(data)
        with closing(audit.AuditLog(path, 1 << 30)) as log:
            log.write({"action": "x"})
        [report] = verify([path])
        text = path.read_bytes()
        assert text.startswith(data)
        line = audit.read(text.splitlines()[-1])
        assert line is not None
        assert line.whole
        assert report.last == line.head


_LINES = tuple(b"%s\r\n" % line for line in (
    b"GET / HTTP/1.1", b"PUT /upload/x HTTP/1.1", b"POST /upload HTTP/1.0", b"Host: a", b"Host: [::1]:80",
    b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: keep-alive", b"Expect: 100-continue",
    b"Connection: close", b"Trailer: Repr-Digest", b"X: " + b"y" * 40,
))  # fmt: skip
_GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_UUID = b"00000000-0000-0000-0000-000000000000"


def _asks(method: bytes, path: bytes, *said: bytes) -> bytes:
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", *said, b"", b""])


_SECTIONS = (Path(__file__).parents[2] / "config.yml").read_bytes().split(b"\n\n")[1:]
_FORM_SEED = (
    b'--bound\r\nContent-Disposition: form-data; name="policy"\r\n\r\ndefault\r\n'
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: text/plain\r\n\r\n'
    b"1\r\n--bound--\r\n"
)
_TO = UUID(int=1).bytes + UUID(int=9).bytes
_FRAMES = (
    wire.encode(wire.Type.GET, fixed.Get(_TO, 1.0, FragmentId(UUID(int=2), 0), 0, 9, False, b"id").encode()),
    wire.encode(wire.Type.PUT, fixed.Put(_TO, 1.0, 9, fragments.HEADER, b"id").encode()),
    wire.encode(
        wire.Type.WHOLE, fixed.Whole(_TO, 1.0, 9, True, fragments.ENTRY, fragments.HEADER, b"id").encode(), 0
    ),
    wire.encode(wire.Type.END, fixed.End(9, True).encode()),
    wire.encode(wire.Type.STORED, fixed.Stored(b"8" * 8).encode()),
    wire.encode(wire.Type.CELLS, fixed.Cells(9, True, 21).encode()),
    wire.encode(wire.Type.STAT, wire.encode_id(FragmentId(UUID(int=2), 0))),
    wire.encode_error(ProtocolError("no")),
)
_AUDIT = b"".join(audit.written({"action": "x"}, audit.Head("ab", n, audit.NOTHING))[0] for n in range(3))

TARGETS: dict[str, Fed] = {
    "http_head": Fed(
        http_head,
        (_GET, _GET * 3, b"PUT /upload/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + _GET),
        (*_LINES, b"\r\n", b"abc", b" ", b"\t", b"\n", b"\r", b":", b"http://a/", b"%00", b"*", b"\x16", b"0\r\n"),
    ),
    "app": Fed(
        app,
        (
            *(_asks(b"GET", path) for path in (b"/files?limit=1", b"/download?uuid=1", b"/", b"/readyz")),
            _asks(b"GET", b"/download/" + _UUID, b"Range: bytes=0-1", b'If-None-Match: "a"'),
            _asks(b"DELETE", b"/files/" + _UUID, b"Origin: http://a", b"Authorization: Basic OmE="),
            _asks(b"PATCH", b"/files/" + _UUID, b"Content-Length: 2") + b"{}",
            _asks(b"PUT", b"/upload/x?policy=default", b"Content-Length: 1", b"Repr-Digest: sha-256=:AA=:") + b"1",
            _asks(b"POST", b"/upload", b"Content-Length: 300", b"Content-Type: " + BOUNDARY) + _FORM_SEED,
            _asks(b"OPTIONS", b"/files", b"Origin: http://a", b"Access-Control-Request-Method: PUT"),
        ),
        (*headers.WORDS, *_LINES, b"/files/", b"/download/", b"/tokens", b"?after=", b"&limit=", b"?uuid=", _UUID),
    ),
    "chunked": Fed(
        chunked,
        (b"3\r\nabc\r\n0\r\n\r\n", b"3;a=b\r\nabc\r\n0\r\nRepr-Digest: x\r\n\r\n" + _GET),
        (b"0\r\n", b"1\r\na\r\n", b"ff\r\n", b"\r\n", b";a=b", b'="', b"F" * 16, b"X: y\r\n", b"0", b"\n"),
    ),
    "multipart": Fed(
        multipart,
        (_FORM_SEED, BOUNDARY + b"\n" + _FORM_SEED, b'multipart/form-data; boundary="--"\n----\r\n\r\n------\r\n'),
        (
            *(b"--bound\r\n", b"--bound--\r\n", b"--bound", b"\r\n", b"\r\n\r\n", b"--", b"x" * 1000, b'"', b"\\"),
            b'Content-Disposition: form-data; name="file"; filename="a"\r\n',
            b'Content-Disposition: form-data; name="policy"',
            *(b"Content-Type: text/html", b"filename*=UTF-8''a", b" "),
        ),
    ),
    "frames": Fed(
        frames,
        _FRAMES,
        (*_FRAMES, b"DFSW", b"\0" * 8, b"\xff" * 8, b'{"slice":', b"[" * 100, b'"index":1e999}', b"NaN"),
    ),
    "greeting": Fed(
        greeting.greeting,
        greeting.SEEDS,
        (*greeting.SAID, b"DFSH", b"\0" * 8, b"\xff" * 8, b"\1", b"\2"),
    ),
    "links": Fed(links.links, links.SEEDS, links.SAID),
    "terms": Fed(
        terms,
        (
            b'{"owner": "anna", "scopes": "upload,list", "quota": "1GB", "expires": "30d"}',
            b'{"owner": "anna", "scopes": ["upload"], "weight": 2, "policies": ["default"], "max_uploads": 8}',
        ),
        (
            *(b'{"owner": "a", "scopes": "admin", "', b'": ', b"[", b"{", b"]", b"}", b",", b"1e400", b"NaN"),
            *(b"true", b"null", b'"', b"\\ud800", b"\\u0000", b"expires", b"name", b"cap_in", b"-1", b"0.1", b"10GB"),
        ),
    ),
    "fragment": Fed(
        fragments.fragment_file,
        fragments.SEEDS,
        fragments.PARTS,
    ),
    "packed": Fed(packed.packed, packed.SEEDS, packed.WORDS),
    "headers": Fed(
        headers.readers,
        tuple(bytes([n]) + seed for n, (_, seeds, _) in enumerate(headers.READERS) for seed in seeds),
        headers.WORDS,
    ),
    "config": Fed(
        config,
        (*_SECTIONS, b"http: {port: 1}\n", b"auth: on\n", b"http: &a {port: 0}\nnode: *a\n"),
        (
            *(b"http:\n", b"  port: ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"- ", b"\n", b": ", b"!!a/b:c "),
            *(b"storage: {policies: ", b"callers: {rules: ", b"1e999", b"9" * 400, b"10GB", b"'", b"? ", b"<<: "),
            *(b"| ", b"http: {cors_origins: [", b"http: {allowed_hosts: [", b"audit: "),
            *(b"tls: ", b"0x10", b"\xff", b"\0", b"%"),
        ),
    ),
    "environment": Fed(
        environment,
        (b"HTTP_PORT=80", b"CALLERS_RULES=[{match: 10.0.0.0/8}]", b"STORAGE_POLICIES={default: 1+1}"),
        (b"HTTP_", b"PORT", b"=", b"[", b"{", b"*a", b"&a", b"_SERVICE_HOST", b"METADB_URL=postgresql://a:b@c/d"),
    ),
    "metadb_url": Fed(
        metadb_url,
        (b"postgresql://u:p@h:1,h2/d?sslmode=require", b"embedded:./data/metadb"),
        (b"postgresql://", b"@", b":", b",", b"/", b"?", b"%", b"%2", b"[::1]", b"host=", b"port=9", b"&"),
    ),
    "audit_log": Fed(
        audit_log,
        (_AUDIT, _AUDIT[:-5], b""),
        (_AUDIT, b"\n", b'{"n":1,"log":"a","prev":"b"', b',"hash":"' + b"0" * 64 + b'"}', b"x", b"[" * 300, b"\0"),
    ),
}  # fmt: skip
