"""What each URL does: ``(services, request, …) -> Response``. No SQL, no sockets.

Way in: ``admin``, ``browsers``, ``changes``, ``download``, ``files``, ``links``, ``logs``, ``messages``,
``metrics``, ``profile``, ``tokens``, ``traced``, ``upload``.
"""
