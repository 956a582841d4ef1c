"""Tools for this repository alone; they are not in the wheel."""
