"""One command for each profiler; outputs are files that `calibration.profilers` reads, beside a manifest."""
