"""For a browser that opens a link for uploads: a form that sends one file, and what became of it. No script runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from distfs.access.link import Link
from distfs.headers import safety
from distfs.model import File
from distfs.problem import asks_for
from distfs.quantity import size
from distfs.routes.messages import Answer, Request, html

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<h1>{title}</h1>
{body}
</html>
"""
_FORM = """\
<form method="post" enctype="multipart/form-data">
<p><label>One file of at most {most}, until {end} UTC: <input type="file" name="file" required></label></p>
<p><button>Send it</button> The browser shows how far it is. When it is stored, this page says so.</p>
</form>"""


def form(request: Request, link: Link, most: int) -> Answer:
    """``most``: bytes that a file may have."""
    request.safety = safety.FORM
    end = datetime.fromtimestamp(link.expires, UTC)
    fields = _FORM.format(most=escape(size(most)), end=f"{end:%Y-%m-%d %H:%M}")
    answer = html(_PAGE.format(title="Send a file", body=fields))
    answer.headers["Cache-Control"] = "no-store"
    return answer


def told(request: Request, files: Sequence[File]) -> Answer | None:
    """That they are stored; None: it was no browser with a link who sent them."""
    if request.actor.link is None or not asks_for(request.environ.get("HTTP_ACCEPT", ""), "text/html"):
        return None
    lines = [
        f"<p>{escape(file.name or 'The file')} is stored: {escape(size(file.size))}.</p>" for file in files
    ]
    return html(_PAGE.format(title="Thank you", body="\n".join(lines)), 201)
