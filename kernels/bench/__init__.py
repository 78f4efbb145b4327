"""Benchmarks: backends against each other, against floors, and against peers (other implementations)."""
