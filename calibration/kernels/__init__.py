"""Kernel families: formulas of few constants against measured kernel tables."""
