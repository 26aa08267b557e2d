"""What a training leaves behind.

From outside: `outcome`, `distance`, `quality`.
"""
