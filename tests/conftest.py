"""Settings that hold for every test."""

import os

from hypothesis import settings

# Two threads, whatever the machine: races need them. It must be set before numba is imported.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

# Shapes, not luck: the same draws every run, and no deadline on a machine that may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")
