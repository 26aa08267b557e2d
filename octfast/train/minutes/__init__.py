"""How long a training will take, and what of it fits into so many minutes.

From outside: `minutes`, `pace`.
"""
