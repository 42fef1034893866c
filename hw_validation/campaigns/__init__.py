"""Measuring campaigns: which sweeps run on one GPU, in which order and time."""
