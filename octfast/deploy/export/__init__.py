"""A trained model as one file with its preprocessing inside.

From outside: `export`.
"""
