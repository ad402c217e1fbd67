"""The process and its surroundings: threads, output, signals, descriptors, dialling, pools, the parent.

Way in: ``threads``, ``output``, ``redact``, ``signals``, ``descriptors``, ``dial``, ``connection_pool``,
``parent_watch``, ``siblings``, ``shared_table``, ``notice_board``, ``forked``, ``log_writer``, ``terminal``,
``private``, ``secret_file``, ``control_groups``,
``idle``.
"""
