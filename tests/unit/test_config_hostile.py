"""A configuration that nobody would write: told in one line, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from distfs.config.file import load
from distfs.errors import ConfigError

BOMB = "local: {data: &a [x,x,x,x,x,x,x,x,x]}\nhttp: {port: &b [*a,*a,*a,*a,*a], host: [*b,*b,*b,*b]}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http: {port: " + "[" * 3000, "nested too deeply"),
        ("{a: " * 1000, "nested too deeply"),
        ("- " * 1000, "nested too deeply"),
        ("http:\n" + "".join(" " * n + "a:\n" for n in range(1, 1000)), "nested too deeply"),
        (BOMB, "line 2: aliases are not taken"),
        ("http: &a {port: *a}", "aliases are not taken"),
        (f"http: {{max_file_size: {'9' * 400}TB}}", "http.max_file_size: .* is more than there can be"),
        (f"http: {{idle_timeout: {'9' * 400}}}", "http.idle_timeout: .* is more than there can be"),
        (f"http: {{threads: {'9' * 5000}}}", "http.threads: .* is more than there can be"),
        (f"bandwidth: {{cap_in: 1{'0' * 20}}}", "bandwidth.cap_in: .* is more than there can be"),
    ],
)
def test_what_means_too_much_is_one_line_and_not_the_end_of_memory(
    text: str, words: str, tmp_path: Path
) -> None:
    """Found by fuzzing."""
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        load(str(file), {})
    assert len(str(refused.value)) < 200
