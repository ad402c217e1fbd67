"""Tests that mount file systems or make network namespaces want root."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def need_root(what: str, *commands: str) -> None:
    """Skip the test without root or one of the commands; in CI, which has both, fail: there nothing is skipped."""
    _need(what, ["root"] if os.geteuid() != 0 else [], *commands)


def need_commands(*commands: str, what: str) -> None:
    """The same for what needs no root, but programs that a machine may lack."""
    _need(what, [], *commands)


def _need(what: str, missing: list[str], *commands: str) -> None:
    missing += [command for command in commands if shutil.which(command) is None]
    if not missing:
        return
    do_without(f"{what} wants {' and '.join(missing)}")


def do_without(words: str) -> NoReturn:
    """Skip the test, and say why in the summary; in CI, fail."""
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)
