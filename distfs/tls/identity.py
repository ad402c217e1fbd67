"""Whom a certificate of a cluster is for: a URI among its names, so that no host's name has to be believed.

A node's binds its UUID and its cluster's, a service's its cluster's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

#: How long a certificate holds that nobody said more of.
CA_DAYS, LEAF_DAYS = 3650, 365
_PREFIX = "urn:distfs:"


def cluster_uri(cluster: UUID) -> str:
    """Of a certificate authority."""
    return f"{_PREFIX}{cluster}"


def node_uri(cluster: UUID, node: UUID) -> str:
    return f"{cluster_uri(cluster)}:node:{node}"


def service_uri(cluster: UUID) -> str:
    return f"{cluster_uri(cluster)}:service"


def cluster_of(uris: tuple[str, ...]) -> UUID | None:
    """The cluster that the first of ours names."""
    for uri in uris:
        if uri.startswith(_PREFIX):
            try:
                return UUID(uri.removeprefix(_PREFIX).partition(":")[0])
            except ValueError:
                return None
    return None


def uris_of(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of a certificate as ``ssl`` decodes it."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(str(value) for kind, value in names if kind == "URI")


def hosts_of(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of hosts, in small letters, as clients ask for them."""
    names = (certificate or {}).get("subjectAltName", ())
    return tuple(str(value).lower() for kind, value in names if kind == "DNS")
