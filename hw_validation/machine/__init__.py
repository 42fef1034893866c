"""What the machine is and does: GPUs, drivers, links, clocks, versions, and samples of GPUs at work."""
