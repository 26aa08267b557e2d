"""Synthetic B-scans: the embedded default, and what the tests use."""
