"""What the stored features of a finished run are asked for later.

From outside: `again`, `again_units`, `pool`.
"""
