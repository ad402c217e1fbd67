"""A storage node as a service reaches it."""
