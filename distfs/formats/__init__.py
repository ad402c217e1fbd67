"""What lies on disks and goes over wires: pure, versioned, no I/O.

Way in: ``fixed``, ``fragment``, ``coding``, ``compression``, ``wire``, ``hello``.
"""
