"""How fast the tools are, as ratios within one run: `make bench`, or `python -m benchmarks quantize --repeat 1`."""
