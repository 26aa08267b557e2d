"""Pretrained weights: where they are published, how they are fetched, and how they are loaded into a network.

From outside: `load`, `untrained`.
"""
