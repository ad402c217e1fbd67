"""What an operator asks of a cluster: each straight of MetaDB and the nodes, with the service's configuration.

Way in: ``audit``, ``parser``, ``display``, ``status``, ``doctor``, ``logs``, ``debug``, ``tls``, ``backup``,
``metadb``, ``migrate``.
"""
