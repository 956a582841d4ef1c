"""The cells of a sweep, each in a process of its own under limits, and why one failed."""
