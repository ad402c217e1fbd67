"""The rules of the tree: imports go downwards; nothing is too long, left open, or names one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The layout of the design, lowest first. A module imports only from rows above its own.
#: A folder stands for every module in it; within a folder any order without a circle.
LAYERS = """
    __init__ errors quantity
    deadline model
    headers process
    audit config formats
    telemetry tls
    body fragment_store metadb problem wire_socket
    host meta
    agreement log_store peers
    storage transfer
    recovery
    limits storage_server upkeep
    access readiness
    together
    services
    local routes
    alerting
    commands http_app
    serve
    cli
    __main__
"""

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50

#: Where everything is caught, because nobody is above to catch it: "module:function" -> why.
OUTERMOST_EDGES = {
    "alerting.beside:Beside.run": "who stumbled over one look tells of the next",
    "body.ingest:_ReadSource._read": "the WSGI host's own edge: each has its own classes for a bad body",
    "host.response:Response.go_on": "any WSGI app may raise anything; a worker thread must outlive it",
    "host.loop:Loop._handle": "one connection's fault must not end all the others",
    "host.workers:Workers._work": "whatever ends a request, its thread goes on with what others wait for",
    "http_app:HttpApp._answer": "any bug of ours must be an answer, under any WSGI host",
    "limits.ledger:Ledger._run": "promises that are not renewed expire under uploads that run",
    "peers.node_list:NodeList._run": "others wait for the list",
    "process.dial:_look_up.ask": "somebody waits for its answer",
    "process.forked:_live": "the end of a forked process; below it are frames of its parent's",
    "process.siblings:Siblings._live": "the end of a forked process, as in process.forked",
    "process.log_writer:LineWriter._line": "a line that cannot be formatted must end neither the log nor the request",
    "process.output:command": "Python's own exit code for a bug is 1, by which commands mean something else",
    "process.threads:Threads._run": "who waits for the work is told",
    "storage.connection:Connection.handle": "the end of a connection's thread",
    "storage.disk.watch:DiskWatch._run": "a disk that nobody probes stays what it was last",
    "storage.disk.writer:DirectSink._write": "raised by the thread that waits for this one",
    "storage.disk.writer:open_sink": "gives back what it took; lets all go on but a file system without O_DIRECT",
    "storage.membership:Membership._run": "without heartbeats a healthy node counts as lost",
    "storage_server:StorageServer.accept": "a node that accepts nothing would go on heartbeating",
    "telemetry.tracing:Exporter._run": "spans are sent after a batch that could not be, too",
    "telemetry.history:History._run": "the history goes on after a row that could not be made",
    "together:Together._say": "the others would be told of a process as it once was",
    "transfer.file_upload:_Digest._run": "others wait for the blocks that it holds",
    "transfer.slice_upload:_Sender._each": "others wait for the blocks that it holds",
    "upkeep.damage:DamageNotes._run": "what readers find is to be noted after one note failed, too",
    "upkeep.runner:Runner.run": "a worker that stumbles must not end upkeep",
}

#: What names one person's machine or network. Written so that no pattern matches itself.
MACHINE_NAMES = [
    (re.compile(r"(?<![\w.:/}])/(?:root|home|work|Users)/[\w.]"), "a path of one machine"),
    (re.compile(r"\.\./share[d]/"), "a folder outside the repository"),
    (
        re.compile(
            r"(?:pypi|pythonhosted|registry|artifactory|nexus)[\w.-]*\.(?:org|com|net|io|internal)\b",
            re.IGNORECASE,
        ),
        "a registry host",
    ),
    (
        re.compile(r"--(?:extra-)?index-ur[l]|--find-link[s]|--trusted-hos[t]|PIP_[A-Z]+_UR[L]"),
        "a registry setting",
    ),
]
OPEN_ENDS = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")


@cache
def tracked() -> list[Path]:
    """Every file that is or is about to be in the repository; all but the ignored ones."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(p for name in listing.stdout.split("\0") if name and (p := ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    return [p for p in tracked() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in folders]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def module_name(path: Path) -> str:
    """distfs/routes/upload.py -> routes.upload; distfs/routes/__init__.py -> routes."""
    parts = path.relative_to(ROOT / "distfs").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def ranks() -> dict[str, int]:
    rows = [row.split() for row in LAYERS.strip().splitlines()]
    return {name: height for height, row in enumerate(rows) for name in row}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every module of distfs that ``path`` imports, at its top or inside a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node.lineno)}: import by the full name, distfs.…"
            package = node.module or ""
            names = [_module_of(package, alias.name) for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name == "distfs" or name.startswith("distfs."):
                yield node.lineno, name.removeprefix("distfs").removeprefix(".") or "__init__"


def _module_of(package: str, name: str) -> str:
    """``from distfs import meta`` imports a module, ``from distfs import __version__`` the package."""
    as_path = ROOT / package.replace(".", "/") / name
    return f"{package}.{name}" if as_path.with_suffix(".py").exists() or as_path.is_dir() else package


def test_every_module_has_its_place_in_the_layout() -> None:
    known = ranks()
    lost = {
        str(p.relative_to(ROOT)) for p in python_files("distfs") if module_name(p).split(".")[0] not in known
    }
    assert not lost, f"add to LAYERS in {Path(__file__).name}, above all that imports them: {sorted(lost)}"


def test_the_layout_names_only_what_there_is() -> None:
    there = {module_name(p).split(".")[0] for p in python_files("distfs")}
    assert not ranks().keys() - there, f"take them out of LAYERS in {Path(__file__).name}"


def test_imports_go_only_downwards() -> None:
    known = ranks()
    wrong = []
    for path in python_files("distfs"):
        room = module_name(path).split(".")[0]
        for line, target in imported(path):
            other = target.split(".")[0]
            if room == other and (ROOT / "distfs" / room).is_dir():
                continue
            if known.get(other, 99) >= known.get(room, -1):
                wrong.append(f"{where(path, line)} imports {target}, which is not below {room}")
    assert not wrong, "\n".join(wrong)


def ways_in(room: str) -> set[str]:
    """The modules of a folder that others may import, as its docstring names them."""
    said = ast.get_docstring(tree_of(ROOT / "distfs" / room / "__init__.py")) or ""
    return set(re.findall(r"``(\w+)``", said.partition("Way in:")[2]))


def test_a_room_is_entered_by_its_way_in() -> None:
    wrong, used = [], set()
    for path in python_files("distfs"):
        for line, target in imported(path):
            room, _, inside = target.partition(".")
            if inside and module_name(path).split(".")[0] != room:
                door = inside.split(".")[0]
                used.add((room, door))
                if door not in ways_in(room):
                    wrong.append(f"{where(path, line)} imports {target}: {room}/__init__.py does not name it")
    assert not wrong, "\n".join(wrong)
    rooms = {p.parent.name for p in python_files("distfs") if p.name == "__init__.py"} - {"distfs", "disk"}
    shut = {(room, door) for room in rooms for door in ways_in(room)} - used
    assert not shut, f"doors that nobody uses: {sorted(shut)}"


def test_modules_of_one_folder_do_not_import_in_a_circle() -> None:
    graph = {module_name(p): {t for _, t in imported(p)} for p in python_files("distfs")}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "a circle of imports: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if path.suffix in (".py", ".sql", ".sh", ".js", ".css", ".html")
        and (lines := len(path.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"over {MAX_FILE_LINES} lines: split by idea: {long}"


def test_no_function_is_too_long() -> None:
    long = [
        f"{where(path, node.lineno)} {node.name}: {length} lines"
        for path in python_files("distfs", "tests", "bench")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def catch_alls(path: Path) -> Iterator[tuple[int, str]]:
    """(line, "module:function") of every handler that catches everything and keeps it."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            function = f"{function}.{node.name}".lstrip(".")
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(
                c is None or (isinstance(c, ast.Name) and c.id in ("Exception", "BaseException"))
                for c in caught
            ):
                yield node.lineno, f"{module_name(path)}:{function}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(tree_of(path), "")


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """It cleans up and lets the exception go on."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_everything_is_caught_only_at_outermost_edges() -> None:
    found = {name: where(path, line) for path in python_files("distfs") for line, name in catch_alls(path)}
    wrong = {name: place for name, place in found.items() if name not in OUTERMOST_EDGES}
    assert not wrong, f"catch what can be named, or list the edge and its reason in OUTERMOST_EDGES: {wrong}"
    assert not OUTERMOST_EDGES.keys() - found.keys(), "edges that are no longer there"


def test_nothing_is_left_for_later() -> None:
    open_ends = [hit for path in tracked() for hit in matches(path, OPEN_ENDS)]
    assert not open_ends, "\n".join(open_ends)


@pytest.mark.parametrize(("pattern", "what"), MACHINE_NAMES, ids=[what for _, what in MACHINE_NAMES])
def test_no_file_names_one_machine(pattern: re.Pattern[str], what: str) -> None:
    hits = [hit for path in tracked() for hit in matches(path, pattern)]
    assert not hits, f"{what}:\n" + "\n".join(hits)


def matches(path: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return  # a picture
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            yield f"{where(path, number)}: {line.strip()}"


def test_every_package_is_installed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    present = {".".join(p.relative_to(ROOT).parent.parts) for p in python_files("distfs")}
    assert set(declared) == present | {"distfs.sql"}, "pyproject.toml, tool.setuptools.packages"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {re.split(r"[\[>=<~ ]", d)[0].lower() for d in asked} - {"distfs"}
    pins = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    assert names <= {line.split("==")[0].lower() for line in pins}
