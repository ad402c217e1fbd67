"""What the configuration asks for and is not installed is said at the start, with the line that installs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.config.settings import Config, StorageConfig, TracingConfig
from distfs.errors import ConfigError
from distfs.formats.coding import code_for
from distfs.http_app import create_app
from distfs.model import Policy
from distfs.telemetry import tracing


@pytest.fixture(autouse=True)
def without_codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where pyeclib is not installed: importing it fails."""
    monkeypatch.setitem(sys.modules, "pyeclib", None)
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    code_for.cache_clear()
    yield
    code_for.cache_clear()


def test_an_app_whose_policy_needs_codes_is_not_made() -> None:
    policies = {"default": Policy(1, 1), "cold": Policy(4, 2)}
    with pytest.raises(ConfigError, match=r"4\+2.*pip install 'distfs\[codes\]'"):
        create_app(Config(storage=StorageConfig(policies=policies)))


def test_copies_need_no_codes() -> None:
    create_app(Config(storage=StorageConfig(policies={"default": Policy(1, 1)}))).close()


def test_a_service_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("storage:\n  policies:\n    default: 4+2\n")
    serve = ["serve", "--port", "0", "--metadb", "postgresql://nobody@127.0.0.1:1/x", "--config", str(config)]
    program = (
        f"import sys; sys.modules['pyeclib'] = None; from distfs.cli import main; sys.exit(main({serve}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert line.endswith("pip install 'distfs[codes]'")


def test_tracing_that_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        ConfigError, match=r"^tracing.endpoint needs an extra: pip install 'distfs\[tracing\]'$"
    ):
        create_app(Config(tracing=TracingConfig("http://127.0.0.1:4318")))
    assert not tracing.on


def test_where_nothing_is_traced_the_library_is_not_even_loaded() -> None:
    program = (
        "import sys; from distfs.config.settings import Config; from distfs.http_app import create_app; "
        "import distfs.storage_server; create_app(Config()).close(); "
        "sys.exit(any(m.split('.')[0] in ('opentelemetry', 'requests') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
