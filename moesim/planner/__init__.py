"""Search over deployments and queue depths, and its explanation."""
