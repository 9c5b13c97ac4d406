"""Measurements: stored results of long runs, and the printed figures of `make bench`."""
