"""What each URL does: ``(services, request, …) -> Response``. No SQL, no sockets."""
