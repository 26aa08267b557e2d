"""Which unlabelled scans to label next.

From outside: `suggest`.
"""
