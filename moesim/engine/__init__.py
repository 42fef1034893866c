"""The discrete-event simulation: arrivals, scheduler, KV cache, ranks in lockstep, masked diffusion."""
