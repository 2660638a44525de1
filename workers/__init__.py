"""The function runtime: what runs inside a worker pod, and nothing else."""
