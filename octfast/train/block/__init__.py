"""Trains the last block of the body with its head, from stored maps.

From outside: `crossval`, `dealt`, `probe`, `trainings`.
"""
