"""The service listens beyond this machine only where somebody has written who may use it, and how."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from distfs.config import file as configuration
from distfs.config.reach import check_reach, is_here, is_loopback
from distfs.config.settings import Config
from distfs.errors import ConfigError
from distfs.http_app import create_app

ELSEWHERE = ("0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"])
def test_loopback_needs_no_decision(host: str) -> None:
    check_reach(configuration.parse({"http": {"host": host}}))


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_both_lines_are_needed_and_named(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_reach(configuration.parse({"http": {"host": host}}))
    line = str(refused.value)
    assert "`auth: on`" in line
    assert "`auth: open`" in line
    assert "`tls: on`" in line
    assert "`tls: off`" in line
    assert "\n" not in line


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize(
    ("written", "missing", "there"),
    [
        ({"auth": "open"}, "`tls: off`", "`auth:"),
        ({"tls": "off"}, "`auth: on`", "`tls:"),
        ({"tls": "off", "auth": "off"}, "`auth: on`", "`tls:"),  # off is for loopback, whoever wrote it
        ({"tls": {"mode": "auto"}, "auth": "open"}, "`tls: off`", "`auth:"),
    ],
)
def test_only_what_nobody_wrote_is_named(
    host: str, written: dict[str, object], missing: str, there: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_reach(configuration.parse({"http": {"host": host}, **written}))
    assert missing in str(refused.value)
    assert there not in str(refused.value)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_with_both_lines_it_starts(host: str) -> None:
    check_reach(configuration.parse({"http": {"host": host}, "auth": "open", "tls": "off"}))


@pytest.mark.parametrize("name", ["nowhere.invalid", "x" * 63])
def test_a_name_without_an_address_is_the_matter_of_who_listens(name: str) -> None:
    assert is_loopback(name)


# --- another host, of which nothing is known ------------------------------------------------------


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_who_is_on_this_machine(address: str) -> None:
    assert is_here(address)


@pytest.mark.parametrize(
    "address", ["198.51.100.7", "2001:db8::1", "::ffff:198.51.100.7", "unknown", "10.0.0.1"]
)
def test_who_is_not(address: str) -> None:
    assert not is_here(address)


@pytest.mark.parametrize(
    ("auth", "address", "path", "status"),
    [
        ("off", "198.51.100.7", "/download/x", "403"),
        ("off", "198.51.100.7", "/upload", "403"),
        ("off", "198.51.100.7", "/status", "403"),
        ("off", "198.51.100.7", "/healthz", "200"),
        ("off", "127.0.0.1", "/download/x", "400"),
        ("off", "", "/download/x", "400"),
        ("open", "198.51.100.7", "/download/x", "400"),
        ("on", "198.51.100.7", "/download/x", "400"),
        ("on", "198.51.100.7", "/files", "401"),
    ],
)
def test_while_auth_is_off_the_app_answers_this_machine_alone(
    auth: str, address: str, path: str, status: str
) -> None:
    """Under whatever host; what a proxy says in X-Forwarded-For is not what it is asked by."""
    environ = {
        "REQUEST_METHOD": "PUT" if path == "/upload" else "GET",
        "PATH_INFO": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "REMOTE_ADDR": address,
        "HTTP_X_FORWARDED_FOR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
    }
    said: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        said.append(status)
        return lambda data: None

    with closing(create_app(configuration.parse({"auth": auth}))) as app:
        answer = app(environ, start_response)
        told = b"".join(answer)
        answer.close()  # type: ignore[attr-defined]
    assert said[0].startswith(status), told
    assert (b"only this machine is answered" in told) is (status == "403")


# --- a section of one word ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("auth: on", "on"),
        ("auth: yes", "on"),
        ("auth: true", "on"),
        ("auth: OFF", "off"),
        ("auth: open", "open"),
        ("auth: {mode: on}", "on"),
        ("auth:", "off"),
        ("", "off"),
    ],
)
def test_a_section_of_one_word_is_its_mode(tmp_path: Path, text: str, mode: str) -> None:
    assert load(tmp_path, text).auth.mode == mode


@pytest.mark.parametrize("value", [True, False])
def test_what_yaml_made_a_boolean_is_the_word_it_was(value: bool) -> None:
    assert configuration.parse({"auth": value}).auth.mode == ("on" if value else "off")


def test_the_environment_wins_over_the_word(tmp_path: Path) -> None:
    config = load(tmp_path, "auth: open\ntls: off", DISTFS_AUTH_MODE="on", DISTFS_AUTH_TOKEN_GRACE="5s")
    assert config.auth.mode == "on"
    assert float(config.auth.token_grace) == 5
    assert config.tls.mode == "off"


def test_other_sections_with_a_mode_have_it_too(tmp_path: Path) -> None:
    assert load(tmp_path, "bandwidth: batch").bandwidth.mode == "batch"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("auth: maybe", "auth.mode: 'maybe' is not on, off or open"),
        ("tls: open", "tls.mode: 'open' is not on, off or auto"),
        ("auth: [on]", "auth must be a mapping of keys"),
        ("http: on", "http must be a mapping of keys"),
    ],
)
def test_another_word_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert words in str(refused.value)


def load(folder: Path, text: str, **environment: str) -> Config:
    (folder / "c.yml").write_text(text)
    return configuration.load(str(folder / "c.yml"), environment)


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    "host", [["--host", "0.0.0.0"], ["--host", "::"], [], ["--config", "c.yml", "--host", ""]]
)
def test_commands_refuse_in_one_line_and_leave_nothing(command: str, host: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("http: {processes: 2}")
    line = run(tmp_path, command, *host, DISTFS_HTTP_HOST="0.0.0.0")
    assert "write `auth: on`" in line
    assert "`tls: off`" in line
    assert [each.name for each in tmp_path.iterdir()] == ["c.yml"]


def run(folder: Path, *words: str, **environment: str) -> str:
    """-> the one line that a command ends with."""
    ended = subprocess.run(
        [sys.executable, "-m", "distfs", *words],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    [line] = ended.stderr.splitlines()
    return line
