"""Data sets of every kind become a Scans table: folders, tables, MedMNIST files.

From outside: `read`, `folder`, `table`, `load`, `columns`, `locate`, `names`, `volumes`, `walk`.
"""
