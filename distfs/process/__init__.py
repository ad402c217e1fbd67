"""The process and its surroundings: threads, output, signals, descriptors, dialling, the parent.

Way in: ``threads``, ``output``, ``redact``, ``signals``, ``descriptors``, ``dial``, ``parent_watch``,
``log_writer``, ``terminal``.
"""
