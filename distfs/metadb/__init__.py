"""What ``distfs.meta`` stands on: connections, URLs, the schema, an embedded PostgreSQL.

Way in: ``answers``, ``ballast``, ``copies``, ``driver``, ``embedded_postgres``, ``schema``, ``link``,
``transactions``, ``url``.
"""
