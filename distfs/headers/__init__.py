"""What headers say, each read by one reader that follows its RFC. Pure: no I/O, and linear in what came.

Way in: ``accept``, ``lengths``, ``media_type``, ``form_part``, ``fields``, ``host``, ``digests``,
``dates``, ``etags``, ``disposition``, ``byte_ranges``, ``origin``, ``safety``, ``authorization``,
``traceparent``, ``composed``.
"""
