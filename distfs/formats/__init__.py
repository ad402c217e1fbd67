"""What lies on disks and goes over wires: pure, versioned, no I/O.

Way in: ``fixed``, ``fragment``, ``features``, ``coding``, ``compression``, ``wire``,
``hello``, ``heads``.
"""
