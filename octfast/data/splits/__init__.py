"""Patients kept apart: validation held out, folds and splits drawn or read from a file, leaks found and refused."""
