"""The command line: a small module a command, which parses, calls one public function and prints.

From outside: `root`.
"""
