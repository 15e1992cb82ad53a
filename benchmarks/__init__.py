"""Benchmarks of speed and memory, as ratios within one run: absolutes depend on the machine."""
