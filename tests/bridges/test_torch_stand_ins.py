"""What the bridge to PyTorch asks of CuPy and of torch's allocator, shown by stand-ins for them: no GPU is needed."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own")
tensors = importlib.import_module("ramnet_np.bridges.tensors")


@pytest.mark.parametrize(
    ("dtype", "handed_over", "seen_as"),
    [
        (torch.float32, torch.float32, None),
        (torch.int64, torch.int64, None),
        (torch.bool, torch.uint8, "bool"),
        (torch.bfloat16, torch.int16, "bfloat16"),
    ],
)
def test_what_dlpack_does_not_take_goes_as_integers(monkeypatch, dtype, handed_over, seen_as):
    taken = []

    class Taken:
        def __init__(self, tensor):
            taken.append(tensor.dtype)
            self.kind = None

        def view(self, kind):
            self.kind = np.dtype(kind).name
            return self

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=Taken))
    array = tensors.array_of(torch.empty(3, dtype=dtype, device="meta"))
    assert taken == [handed_over]
    assert array.kind == seen_as


def test_memory_goes_back_to_torchs_allocator_until_python_ends(monkeypatch):
    asked, freed = [], []
    stream = SimpleNamespace(ptr=0x77)
    cuda = SimpleNamespace(get_current_stream=lambda: stream, PythonFunctionAllocator=lambda *functions: functions)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", lambda *given: asked.append(given) or 0x5000)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", freed.append)
    allocate, free = tensors._torch_allocator.__wrapped__()
    assert allocate(64, 1) == 0x5000
    assert asked == [(64, 1, 0x77)]
    free(0x5000, 1)
    assert freed == [0x5000]
    free(0x6000, 1, ending=lambda: True)
    assert freed == [0x5000]
