"""What makes probabilities honest: temperature, operating point and prediction sets, fitted on validation.

From outside: `calibrate`, `conformal`.
"""
