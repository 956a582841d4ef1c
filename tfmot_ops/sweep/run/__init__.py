"""Running the cells of a sweep in child processes with limits, and the error classes of failed cells."""
