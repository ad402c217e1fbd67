"""MetaDB made anew from what the storage nodes keep: found, judged, written.

Way in: ``db``, ``judge``, ``kept``, ``rebuild``.
"""
