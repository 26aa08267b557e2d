"""Files, folders and volumes in, a table of answers out.

From outside: `inputs`, `predict`, `prediction`, `rows`, `writers`.
"""
