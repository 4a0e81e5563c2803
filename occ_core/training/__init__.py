"""Training: data cache, loop, checkpoints."""
