"""What the other packages need of the place they run in: variables, versions, processes, files, temporary folders."""
