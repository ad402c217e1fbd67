"""What lies on disks and goes over wires: pure, versioned, no I/O.

Way in: ``fixed``, ``fragment``, ``features``, ``coding``, ``compression``, ``zstd_stream``, ``wire``,
``hello``, ``heads``.
"""
