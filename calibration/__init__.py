"""Measurements in, constants and their doubt out: readers, fits, left-out errors, reports."""
