"""What the programs agree on, and nothing else."""
