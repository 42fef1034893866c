"""Which batch sizes are run once before a measurement."""

from __future__ import annotations

from moesim.specs.scenario import Scenario
from moesim.specs.workload import ClosedLoop

WARM_UP_TOKENS = 8


def warm_up_batches(scenario: Scenario) -> list[int]:
    """Powers of two up to what can be in flight, and that size."""
    arrival, workload = scenario.workload.arrival, scenario.workload
    clients = arrival.concurrency if isinstance(arrival, ClosedLoop) else workload.num_prompts
    ranks = scenario.deployment.data_parallel_size
    largest = min(clients, workload.num_prompts, scenario.deployment.max_num_seqs * ranks)
    return sorted({2**power for power in range(largest.bit_length()) if 2**power <= largest} | {largest})
