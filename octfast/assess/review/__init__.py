"""What deserves a look before a model is trusted, and what putting it right changes.

From outside: `worklist`, `effect`, `agreement`, `units`.
"""
