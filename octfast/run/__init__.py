"""The run folder as a record on disk, read and written without torch or fastai.

From outside: `folder`, `log`, `origin`, `privacy`, `state`.
"""
