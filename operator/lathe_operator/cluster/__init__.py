"""Access to the API server, and nothing else."""
