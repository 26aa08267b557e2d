"""The activations that a frozen prefix gave, kept on disk.

From outside: `cache`, `files`, `loader`, `reuse`, `rows`, `store`.
"""
