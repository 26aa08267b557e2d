"""A run and its scans become one table of predictions, and that table becomes metrics, figures and a report.

From outside: `at_level`, `choose`, `evaluate`, `compare`, `paper`, `predictions`, `similar`.
"""
