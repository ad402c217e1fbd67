"""Settings of tracing."""

from __future__ import annotations

import pytest

from distfs.config.file import parse
from distfs.errors import ConfigError


@pytest.mark.parametrize(("text", "share"), [("100%", 1), ("1", 1), ("0", 0), ("0.5%", 0.005)])
def test_all_traces_may_be_sent_or_none(text: str, share: float) -> None:
    assert parse({"tracing": {"ratio": text}}).tracing.ratio == pytest.approx(share)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": "101%"}, "tracing.ratio: '101%' must be from 0 to 100%"),
        ({"endpoint": "collector:4318"}, "tracing.endpoint must be a URL, as http://127.0.0.1:4318"),
        ({"endpoint": "http://[::1"}, "tracing.endpoint must be a URL"),
        ({"endpoint": "http://x:99999"}, "tracing.endpoint must be a URL"),
        ({"service_name": ""}, "tracing.service_name must not be empty"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse({"tracing": settings})
    assert str(refused.value).startswith(f"config: {words}")
