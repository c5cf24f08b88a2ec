"""Measurements, each side by side with what it is compared with, from one interleaved run: `python -m benchmarks`."""
