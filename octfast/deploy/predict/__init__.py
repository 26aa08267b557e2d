"""Files, folders and volumes in, a table of answers out.

From outside: `predict`, `rows`, `writers`.
"""
