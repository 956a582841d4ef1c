"""Tasks, one module each: the meaning of a data set's targets, with the matching head, loss and metrics."""
