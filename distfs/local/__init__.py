"""Everything on this machine: ``distfs up``, its parts and its data folder.

Way in: ``cluster``, ``data_folder``, ``supervisor``, ``reload``,
``machine``.
"""
