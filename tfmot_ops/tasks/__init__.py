"""What the targets of a data set mean: head, loss, checks and metrics. One file a task."""
