"""No URL that is shown has its password, wherever the text comes from."""

from __future__ import annotations

import pytest

from distfs import cli, storage_server
from distfs.config import file as config_file
from distfs.errors import ConfigError
from distfs.process.redact import redacted, redacted_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://anna:secret@db:5432/files", "postgresql://anna:***@db:5432/files"),
        ("postgresql://anna@db/files", "postgresql://anna@db/files"),
        ("postgresql://:secret@db", "postgresql://:***@db"),
        ("use 'postgresql://anna:se/cr?et@h@db/f', not x", "use 'postgresql://anna:***@db/f', not x"),
        ("--metabd=postgresql://anna:secret@db/f", "--metabd=postgresql://anna:***@db/f"),
        ("postgresql://anna@db/f?password=secret&sslmode=require", None),
        ("postgresql://anna@db/f?sslmode=require&password=se@cret", None),
        ("a postgresql://a:secret@b\nand http://c:secret@d", "a postgresql://a:***@b\nand http://c:***@d"),
        ("distfs is ready at http://127.0.0.1:8080 (me@home)",) * 2,
        ("http://[::1]:8080/upload, x=1",) * 2,
    ],
)
def test_a_password_is_hidden_and_nothing_else(text: str, shown: str | None) -> None:
    assert "cret" not in redacted(text)
    assert shown is None or redacted(text) == shown
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("inside", ["\n", "\x1b[2J", "\u2028", "\x85", "\x9b2J", "\r", "\x7f"])
def test_what_is_wrong_is_told_on_one_line_that_is_harmless_to_a_terminal(
    inside: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by fuzzing: the name of a variable may have anything in it."""
    monkeypatch.setenv(f"DISTFS_A{inside}B", "x")
    assert cli.main(["nodes"]) == 2
    told = capsys.readouterr().err
    assert "environment: unknown DISTFS_A" in told
    assert told.removesuffix("\n").isprintable()


def test_one_argument_may_have_blanks() -> None:
    assert redacted_word("--m=postgresql://anna:a se cret@db") == "--m=postgresql://anna:***@db"


def test_a_long_line_takes_no_longer_than_its_length() -> None:
    assert redacted("://" * 300_000 + "@" + "password=" * 300_000)


URL = "postgresql://anna:se cret@db/files?password=secret"
WRONG = {
    "a flag that is misspelt": ["serve", "--metabd", URL],
    "with the value in it": ["serve", f"--metabd={URL}"],
    "an operator's command": ["nodes", URL],
    "a command": [URL],
    "a flag that needs no value": ["nodes", f"--json={URL}"],
    "a number": ["serve", "--port", URL],
    "a flag cut short": ["fsck", f"--no={URL.replace(' ', '')}"],
    "a service that is none": ["status", "--service", URL],
    "a service with a login": ["status", "--service", "http://anna:secret@127.0.0.1:8080"],
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_a_wrong_command_line_is_refused_without_its_password(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli._run(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "error: " in told
    assert "cret" not in told.split("error: ")[1]


@pytest.mark.parametrize("words", [["--metabd", URL], [f"--metabd={URL}"], ["--port", URL], [URL]])
def test_a_node_refuses_one_without_its_password(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert storage_server.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("storage_server: ")
    assert "cret" not in told


@pytest.mark.parametrize(
    "tree",
    [
        {"metadb": "postgresql://anna:secret@db/f"},
        {"metadb": {"url": ["postgresql://anna:secret@db/f"]}},
        {"metadb": {"postgresql://anna:secret@db/f": "x"}},
        {"metadb": {"password": ["secret"]}},
        {"metadb": {"password": "secret\nsecret"}},
    ],
)
def test_a_wrong_configuration_is_refused_without_its_password(tree: object) -> None:
    with pytest.raises(ConfigError, match="metadb") as refused:
        config_file.parse(tree)
    assert "secret" not in str(refused.value)
