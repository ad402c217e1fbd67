"""What distfs is measured by: ``python -m bench``. A measuring device; no part of distfs imports it."""
