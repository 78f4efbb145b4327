"""Rows of a sparse state on a "GPU" that is the CPU: what the tests of their kernels share."""

import importlib
import shutil
import sys

import numpy as np
import pytest

from ramnet_np import MemoryTiers
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu

rows_module = importlib.import_module("ramnet_np.kernels.cuda.sparse.rows")
ROW = 16  # bytes of a row of 4 contents; the mass is elsewhere
INITIAL = np.array([0, 0, 0, 0, 0.25], np.float32)


def rows_library(tmp_path_factory):
    """The kernels of rows.cu."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    return compile_for_cpu(rows_module.ROWS, tmp_path_factory.mktemp("kernels"))


def fake_cupy(library, monkeypatch):
    """CuPy, and launches that run on the CPU."""

    def launch(specialisation, name, grid, threads):
        return lambda params: getattr(library, f"run_{name}")(params.tobytes(), grid[0], 1, 1)

    cupy = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(rows_module, "Launch", launch)
    cupy.library = library
    return cupy


def device_rows(gpu=None, host=None, slots=2**42):
    """Rows of 4 contents and a mass, with so many pages."""
    page = rows_module.PAGE_ROWS * ROW
    tiers = MemoryTiers(gpu=None if gpu is None else gpu * page, host=None if host is None else host * page)
    return rows_module.DeviceRows(INITIAL, tiers, slots)


def on(array):
    """The array on the "GPU"."""
    return np.ascontiguousarray(array).view(OnDevice)
