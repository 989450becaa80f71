"""Benchmarks of long runs, and of runs on several processes."""
