"""Runs on real GPUs: engines, microbenchmarks and profilers, recorded for calibration."""
