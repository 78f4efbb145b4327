"""What the bridge to PyTorch asks of CuPy and of torch's allocator, shown by stand-ins for them: no GPU is needed."""

import ctypes
import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own")
tensors = importlib.import_module("ramnet_np.bridges.tensors")


class OnGpu:
    """A tensor that says it is on GPU 3, and lies in the host's memory."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    def detach(self):
        return self

    def get_device(self):
        return 3


def cupy_of_the_host(made):
    """CuPy's arrays over memory of others, as NumPy's; ``made``: what was said of the memory."""

    def unowned(address, size, owner, gpu):
        made.append((address, size, owner, gpu))
        return address

    def ndarray(shape, dtype, address, strides):
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        memory = (ctypes.c_char * (size + dtype.itemsize - 1)).from_address(address)
        return np.ndarray(shape, dtype, memory, 0, strides)

    cuda = SimpleNamespace(UnownedMemory=unowned, MemoryPointer=lambda memory, offset: memory + offset)
    return SimpleNamespace(cuda=cuda, ndarray=ndarray)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_an_array_on_a_gpu_is_the_tensors_memory_and_keeps_it(monkeypatch, dtype):
    x = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    made = []
    monkeypatch.setitem(sys.modules, "cupy", cupy_of_the_host(made))
    for tensor in (x, x.transpose(0, 2), x[:, 1:, ::2], x[:1].expand(5, 3, 4), x[1, 2, 3]):
        given = OnGpu(tensor)
        array = tensors.array_of(given)
        assert array.dtype == tensors.dtype_of(dtype)
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
        assert made.pop() == (tensor.data_ptr(), tensor.nbytes, given, 3)


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
