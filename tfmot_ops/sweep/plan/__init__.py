"""Which cells a sweep has, what they need, and what decides their results."""
