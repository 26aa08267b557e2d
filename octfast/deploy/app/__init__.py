"""The local web page of a trained model and its JSON endpoint. Not a medical device.

From outside: `app`, `answers`, `guard`, `parts`.
"""
