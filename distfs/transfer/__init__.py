"""The two ways of the bytes: cut, place, send; read, check, rebuild.

Way in: ``upload``, ``download``, ``blocks``, ``placement``, ``rebuild``, ``remains``, ``slice_plan``,
``slice_read``.
"""
