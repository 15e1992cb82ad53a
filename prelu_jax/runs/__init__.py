"""Runs: their folders, checkpoints, processes and the command that trains one."""
