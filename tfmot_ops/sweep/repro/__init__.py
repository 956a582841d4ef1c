"""The smallest part of a failing architecture that still fails, as a script."""
