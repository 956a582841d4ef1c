"""`make demo` and `make ui`: everything on this machine, in the folder `.demo` of a checkout."""
