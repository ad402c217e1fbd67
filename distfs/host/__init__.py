"""The parts of distfs's own HTTP host, ``distfs.server``."""
