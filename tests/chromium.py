"""Chromium without a window, told what to do over its DevTools protocol, as a person would do it: no script is run.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0  # it is stuck, not slow
NEEDED = ("chromium", "certutil")
MISSING = [name for name in NEEDED if shutil.which(name) is None]

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--disable-sync",
    ),
    *("--remote-debugging-pipe", "--no-proxy-server"),
)


class Page:
    """One, in one browser."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of = os.fdopen(to, "wb", buffering=0), os.fdopen(of, "rb", buffering=0)
        self._serial, self._had = itertools.count(1), b""
        self._session: str | None = None
        self.seen: list[dict[str, Any]] = []  # events
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._to.close()
        self._of.close()

    def call(self, method: str, **params: object) -> Any:
        """-> its result."""
        number = next(self._serial)
        asked = {"id": number, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        self._to.write(json.dumps(asked).encode() + b"\0")
        while (said := self._next()).get("id") != number:
            self.seen.append(said)
        assert "error" not in said, said
        return said["result"]

    def open(self, url: str) -> str:
        """-> why it cannot be shown; empty: it is."""
        self.seen.clear()
        wrong: str = self.call("Page.navigate", url=url).get("errorText", "")
        self.loaded()
        return wrong

    def loaded(self) -> None:
        """Wait until a page is."""
        while not any(each["method"] == "Page.loadEventFired" for each in self.seen):
            self.seen.append(self._next())

    def text(self) -> str:
        """As HTML."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        html: str = self.call("DOM.getOuterHTML", nodeId=root)["outerHTML"]
        return html

    def choose(self, selector: str, file: Path) -> None:
        """A file for a field of a form."""
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=self._node(selector))

    def press(self, selector: str) -> None:
        """A button, by the keyboard, and wait for the next page."""
        self.call("DOM.focus", nodeId=self._node(selector))
        self.seen.clear()
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
        self.call("Input.dispatchKeyEvent", type="keyUp", **enter)
        self.loaded()

    @property
    def complaints(self) -> list[str]:
        """What the browser has against the page, such as what its Content-Security-Policy forbids."""
        return [each["params"]["entry"]["text"] for each in self.seen if each["method"] == "Log.entryAdded"]

    def _node(self, selector: str) -> int:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found: int = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert found, selector
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._had:
            ready, _, _ = select.select([self._of], [], [], PATIENCE_S)
            assert ready, f"the browser says nothing more; the last was {self.seen[-3:]}"
            piece = self._of.read(1 << 16)
            assert piece, "the browser has ended"
            self._had += piece
        one, _, self._had = self._had.partition(b"\0")
        said: dict[str, Any] = json.loads(one)
        return said


@contextmanager
def browsing(home: Path, ca: Path) -> Iterator[Page]:
    """A page of a new browser that believes ``ca`` beside those of its own, as after its settings were used."""
    store = home / ".pki" / "nssdb"
    store.mkdir(parents=True)
    for words in (("-N", "--empty-password"), ("-A", "-n", "ours", "-t", "C,,", "-i", str(ca))):
        subprocess.run(["certutil", "-d", f"sql:{store}", *words], check=True, capture_output=True)
    reads, to = os.pipe()
    of, writes = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    moved = f'exec "$@" 3<&{reads} 4>&{writes} {reads}<&- {writes}>&-'
    command = ["bash", "-c", moved, "chromium", "chromium", *_FLAGS, f"--user-data-dir={home / 'data'}"]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    with subprocess.Popen(
        command,
        env=environment,
        pass_fds=(reads, writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(reads)
        os.close(writes)
        try:
            page = Page(to, of)
            try:
                yield page
            finally:
                page.close()  # and it ends
        finally:
            process.terminate()
