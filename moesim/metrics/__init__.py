"""From a run to latencies, rates, utilisation, breakdowns and intervals."""
