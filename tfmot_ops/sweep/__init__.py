"""Sweeps of the compat matrix: plan the cells, run them in child processes, judge and report the results."""
