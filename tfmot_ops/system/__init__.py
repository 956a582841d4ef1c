"""What the other packages need of the operating system: processes, files, temporary folders."""
