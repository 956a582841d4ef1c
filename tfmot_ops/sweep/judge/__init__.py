"""What was expected of each cell, and whether the answers of its file are good enough."""
