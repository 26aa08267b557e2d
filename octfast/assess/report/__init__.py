"""One page and a model card that hold all a reader asks of a run.

From outside: `report`, `tables`.
"""
