"""What ``distfs.meta`` stands on: connections, URLs, the schema, an embedded PostgreSQL."""
