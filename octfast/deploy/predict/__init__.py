"""Files, folders and volumes in, a table of answers out.

From outside: `aggregated`, `inputs`, `predict`, `prediction`, `rows`, `writers`.
"""
