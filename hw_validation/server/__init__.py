"""vLLM as a server or in a process of its own: started, probed, warmed, driven, sampled and stopped."""
