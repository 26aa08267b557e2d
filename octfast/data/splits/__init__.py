"""Splits that share no patient: validation held out, splits and folds drawn or read from a file, leaks refused.

From outside: `hold_out`, `folds`, `files`, `groups`, `leaks`.
"""
