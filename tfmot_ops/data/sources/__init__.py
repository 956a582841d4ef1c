"""Sources of samples, one module per source."""
