"""The tests of the model run on the NumPy core, but those of a GPU: the kernels for the CPU have tests of their own."""

from contextlib import nullcontext

import pytest

from ramnet_np import use_backend


@pytest.fixture(autouse=True)
def _numpy_backend(request):
    with nullcontext() if request.node.get_closest_marker("gpu") else use_backend("numpy"):
        yield
