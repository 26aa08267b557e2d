"""Synthetic B-scans, with faults planted where asked for: the embedded default, and what the tests use.

From outside: `draw`, `faults`, `volumes`.
"""
