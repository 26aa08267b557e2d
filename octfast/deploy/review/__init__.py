"""The page on which labels are looked through and put right, and what it keeps. Not a medical device.

From outside: `app`, `session`.
"""
