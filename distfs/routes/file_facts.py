"""What answers say of a file: as JSON, as headers, as the line that an upload gets."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache

from werkzeug.urls import iri_to_uri

from distfs.headers import media_type
from distfs.headers.media_type import MediaType
from distfs.model import File
from distfs.routes.messages import Answer, Request, as_json, text


def download_url(request: Request, file: File) -> str:
    """Where the file is, as a path on this host."""
    return _download_url(request, str(file.id))


def _download_url(request: Request, id: str) -> str:
    root = request.root_path
    return f"{iri_to_uri(root) if root else ''}/download/{id}"


def facts(request: Request, file: File) -> dict[str, object]:
    """What who may see a file may know of it; whose it is, is for its owner."""
    owner = {"owner": file.owner} if request.actor.knows_all_of(file) else {}
    return {
        "uuid": str(file.id),
        "name": file.name,
        "size": file.size,
        "stored": file.size if file.stored is None else file.stored,
        "sha256": file.sha256.hex(),
        "content_type": str(media_type.read(file.content_type)),
        "policy": str(file.policy),
        "created_at": file.created_at.isoformat(),
        **owner,
        "visibility": file.visibility,
        "download": download_url(request, file),
    }


def created(request: Request, files: Sequence[File]) -> Answer:
    """201: a line a file, or JSON: an object for one file, a list for several (RFC 9530 digest for one)."""
    ids = request.changed = [str(file.id) for file in files]
    if request.wants_json:
        entries = [facts(request, file) for file in files]
        response = as_json(entries[0] if len(entries) == 1 else entries, 201)
    else:
        response = text("\n".join([*ids, ""]), 201)
    response.headers["Location"] = _download_url(request, ids[0])
    if len(files) == 1:
        response.headers["Repr-Digest"] = repr_digest(files[0])
    return response


def etag(file: File) -> str:
    return file.sha256.hex()


def repr_digest(file: File) -> str:
    """RFC 9530: the digest of the whole file, whatever range is asked for."""
    return f"sha-256=:{b64encode(file.sha256).decode()}:"


def served_type(file: File) -> MediaType:
    """As it was read anew: another version may have stored it as it came."""
    return _served_type(file.content_type)


@lru_cache(maxsize=256)
def _served_type(text: str) -> MediaType:
    return media_type.read(text).plain()
