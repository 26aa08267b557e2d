"""Runs the frozen part of a network once, and trains what follows on what it gave.

From outside: `frozen`, `part`, `folds`, `together`, `bags`, `views`, `draws`, `dealt`.
"""
