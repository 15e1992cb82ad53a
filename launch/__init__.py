"""Commands that start experiments: on this machine, on a SLURM cluster, on a TPU pod."""
