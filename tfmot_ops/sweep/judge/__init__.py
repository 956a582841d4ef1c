"""The expected result of each cell, and how well the TFLite files agree with their models."""
