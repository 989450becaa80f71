"""Speed against the best peers, in one run on one machine: ``python -m benchmarks``."""
