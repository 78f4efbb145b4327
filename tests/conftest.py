"""Settings that hold for every test."""

import gc
import importlib.util
import os
import signal

import pytest
from hypothesis import settings

# Two threads, whatever the machine: races need them. It must be set before numba is imported.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

# Compilers make many objects that stay: looking through them as often as Python does takes a tenth of their time.
gc.set_threshold(50_000, 20, 20)

# Shapes, not luck: the same draws every run, and no deadline on a machine that may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Tests that are given Numba as a backend are left out where it is missing: ``python -m tests.versions alone``."""
    if importlib.util.find_spec("numba") is None:
        for item in items:
            given = item.callspec.params.values() if hasattr(item, "callspec") else ()
            if any(isinstance(value, str) and value == "numba" for value in given):
                item.add_marker(pytest.mark.skip(reason="Numba is not installed"))


@pytest.fixture
def extra_rule(monkeypatch):
    """The name of an update rule that only the table of the core has: alpha = exp(-(gamma - 1/2) * w)."""
    import numpy as np

    from ramnet_np.core.retention import RULES, UpdateRule

    def forward(w, gamma):
        return np.exp(-(gamma - 0.5) * w)

    def backward(w, gamma, alpha, proxy_eps):
        return -(gamma - 0.5) * alpha, -w * alpha

    monkeypatch.setitem(RULES, "extra", UpdateRule("extra", forward, backward, 0.5, "alpha = exp(-(gamma - 1/2) * w)"))
    return "extra"


def pytest_configure():
    """A shell starts what it puts in the background with SIGINT ignored, which runs and their tests would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
