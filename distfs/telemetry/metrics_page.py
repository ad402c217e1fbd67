"""The page of all metrics: docs/metrics.md."""

from __future__ import annotations

from distfs.telemetry.metrics import METRICS

_EXAMPLE = """\
```yaml
scrape_configs:
  - job_name: distfs
    static_configs: [{targets: ["127.0.0.1:8080"]}]
    authorization: {credentials_file: /etc/prometheus/distfs-token} # of an administrator, while auth is on
  - job_name: distfs-node
    static_configs: [{targets: ["10.0.0.11:9101", "10.0.0.12:9101"]}] # node.metrics_port
  - job_name: distfs-node-by-service # instead, where there are few nodes and no port for it: by their ids
    static_configs: [{targets: ["1", "2", "3"]}]
    authorization: {credentials_file: /etc/prometheus/distfs-token}
    relabel_configs:
      - {source_labels: [__address__], target_label: __param_node}
      - {source_labels: [__address__], target_label: instance}
      - {target_label: __address__, replacement: "127.0.0.1:8080"}
```

"""


def page() -> str:
    """docs/metrics.md."""
    rows = [
        f"| `{m.name}` | {m.part} | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.meaning} |\n"
        for m in METRICS
    ]
    return (
        "# Metrics\n\n`make docs` writes this page from what is counted. "
        "`GET /metrics` tells of all processes of the service that is asked; "
        "who may ask, [http.md](http.md) says. A node tells of itself on `node.metrics_port`.\n\n"
        + _EXAMPLE
        + "| metric | of | type | labels | meaning |\n|---|---|---|---|---|\n"
        + "".join(rows)
    )
