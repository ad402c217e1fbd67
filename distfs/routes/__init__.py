"""What each URL does: ``(services, request, …) -> Response``. No SQL, no sockets.

Way in: ``admin``, ``download``, ``files``, ``upload``, ``messages``.
"""
