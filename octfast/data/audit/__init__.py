"""What is wrong with a data set: unreadable, unusual, annotated, duplicated or leaking scans.

From outside: `audit`, `checks`, `releases`.
"""
