"""Many cells of the compat matrix: run in child processes, kept on disk, counted."""
