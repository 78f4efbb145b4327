"""Settings that hold for every test."""

from hypothesis import settings

# Shapes, not luck: the same draws every run, and no deadline on a machine that may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")
