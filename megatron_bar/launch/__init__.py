"""Run a recipe's stage graph, here or (a later step) as SLURM jobs."""
