"""Trains one network in several processes, which share its batches.

From outside: `beside`.
"""
