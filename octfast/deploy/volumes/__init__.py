"""Volumes of B-scans read in a process of its own, limited in time and memory."""
