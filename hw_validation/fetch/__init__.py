"""Model snapshots by revision: listed, downloaded with resume, verified, and never a line of code."""
