"""Benchmarks: each a ratio of two sides that ran in turns on the same machine. `make bench` runs them."""
