"""An upload that whoever stands before a service is seen to pass on while it comes."""

from __future__ import annotations

import http.client

from tests.cluster.harness import Cluster
from tests.contract.litter import eventually


def upload_as_it_comes(connection: http.client.HTTPConnection, cluster: Cluster, data: bytes) -> str:
    """-> the file's UUID."""
    connection.putrequest("PUT", "/upload/large")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders()
    connection.send(data[: len(data) // 2])
    eventually(
        lambda: any((cluster.node_folder(i) / "tmp").glob("[!p]*") for i in range(3)),
        "a node has some of it before the client has sent it all",
    )
    connection.send(data[len(data) // 2 :])
    answer = connection.getresponse()
    uuid = answer.read().decode().strip()
    assert answer.status == 201
    return uuid
