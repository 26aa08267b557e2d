"""A trained model and new scans become answers: a predictor, a table, a web page, one file for other programs.

From outside: `predictor`.
"""
