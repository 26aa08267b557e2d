"""A run and its scans become one table of predictions, and that table becomes figures."""
