"""The tests of the model run on the NumPy core; the kernels have tests of their own."""

import pytest

from ramnet_np import use_backend


@pytest.fixture(autouse=True)
def _numpy_backend():
    with use_backend("numpy"):
        yield
