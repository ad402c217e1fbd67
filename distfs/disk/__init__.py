"""Fragments on one disk."""
