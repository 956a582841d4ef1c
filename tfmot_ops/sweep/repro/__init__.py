"""Repros: scripts with the smallest part of a failing architecture that still fails."""
