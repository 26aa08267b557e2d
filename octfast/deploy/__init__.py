"""A trained model and new scans become answers."""
