"""How scans that a model was asked about compare with those that it was trained on.

From outside: `drift`, `result`.
"""
