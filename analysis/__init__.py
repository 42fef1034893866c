"""Studies over moesim: its own speed, figures and tables."""
