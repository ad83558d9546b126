"""Benchmarks, which report the ratio of two sides run in turns on one machine. `make bench` runs them."""
