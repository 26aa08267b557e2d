"""A Predictions table becomes metrics with intervals that respect patients."""
