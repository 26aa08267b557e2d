"""OCT volumes, read in a process of its own that is limited in time and memory.

From outside: `about`, `exports`, `kinds`, `pseudonym`, `reader`, `series`, `store`.
"""
