"""What one operator and one engine step cost, as a function of the parameter set."""
