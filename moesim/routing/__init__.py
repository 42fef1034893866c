"""Who goes to which expert: popularity, exact sampling, loads, imbalance."""
