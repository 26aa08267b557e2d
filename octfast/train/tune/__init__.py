"""The search for a recipe on stored features, by patient.

From outside: `result`, `search`.
"""
