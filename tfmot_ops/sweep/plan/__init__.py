"""Planning of a sweep: its cells, their CPU time and memory, and the digest of a cell's inputs."""
