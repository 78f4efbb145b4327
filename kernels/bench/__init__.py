"""Benchmarks: backends beside each other, beside floors, and beside peers."""
