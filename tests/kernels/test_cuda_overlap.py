"""When a launch may begin before the one before it has ended, and how the driver is asked for that: without a GPU."""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.runtime import overlap

from ramnet_np.contract import weights_are_staying, weights_stay

PARAMS = np.array((7,), dtype=[("rows", np.int32)])[()]


@pytest.fixture
def launched(monkeypatch):
    """How a kernel was launched: "usual", or what the driver was given; ``status``: what the driver answers."""
    found = SimpleNamespace(calls=[], status=0)

    def usual(grid, block, arguments, shared_mem):
        found.calls.append("usual")

    def launch_kernel(config, function, arguments, extra):
        config = ctypes.cast(config, ctypes.POINTER(overlap._Config))[0]
        attribute = config.attributes[0]
        found.calls.append((
            list(config.grid), list(config.block), config.shared, config.stream, config.count, attribute.id,
            attribute.value[1], function.value, ctypes.cast(arguments[0], ctypes.POINTER(ctypes.c_int))[0],
        ))  # fmt: skip
        return found.status

    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 0), get_current_stream=lambda: SimpleNamespace(ptr=0x1000)
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(overlap, "_possible", lambda device: True)
    monkeypatch.setattr(overlap, "_driver", lambda: SimpleNamespace(cuLaunchKernelEx=launch_kernel))
    usual.kernel, usual.name = SimpleNamespace(ptr=0x2000), "few_rows"
    found.kernel = usual
    found.launch = lambda **options: overlap.launch(usual, (5, 2), 128, PARAMS, 4096, **options)
    return found


def test_the_driver_is_told_where_weights_stay(launched):
    with weights_stay():
        launched.launch()
        overlap.launch(launched.kernel, (3,), 64, PARAMS)
    assert launched.calls == [
        ([5, 2, 1], [128, 1, 1], 4096, 0x1000, 1, 6, 1, 0x2000, 7),
        ([3, 1, 1], [64, 1, 1], 0, 0x1000, 1, 6, 1, 0x2000, 7),
    ]
    assert (ctypes.sizeof(overlap._Attribute), ctypes.sizeof(overlap._Config)) == (72, 56)  # as of cuda.h


def test_a_launch_is_usual_elsewhere(launched, monkeypatch):
    launched.launch()
    with weights_stay(), suppress(MemoryError):
        with weights_stay():
            launched.launch(early=False)
        assert weights_are_staying()
        with ThreadPoolExecutor() as other:
            other.submit(launched.launch).result()
        raise MemoryError
    launched.launch()
    monkeypatch.setattr(overlap, "_possible", lambda device: False)
    with weights_stay():
        launched.launch()
    assert launched.calls == ["usual"] * 5


def test_a_launch_that_the_driver_refuses_is_said(launched):
    launched.status = 719
    with weights_stay(), pytest.raises(RuntimeError, match=r"refused to launch few_rows beside .*, error 719"):
        launched.launch()


@pytest.mark.parametrize(
    ("capability", "driver", "possible"),
    [("90", 12030, True), ("100", 13000, True), ("89", 13000, False), ("90", 12029, False)],
)
def test_only_gpus_and_drivers_that_can_overlap_are_asked_to(monkeypatch, capability, driver, possible):
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(driverGetVersion=lambda: driver),
        Device=lambda number: {3: SimpleNamespace(compute_capability=capability)}[number],
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert overlap._possible.__wrapped__(3) == possible


@pytest.mark.parametrize(("system", "name"), [("nt", "nvcuda.dll"), ("posix", "libcuda.so.1")])
def test_the_driver_is_that_of_the_system(monkeypatch, system, name):
    monkeypatch.setattr(overlap, "os", SimpleNamespace(name=system))
    monkeypatch.setattr(overlap.ctypes, "CDLL", lambda name: name)
    assert overlap._driver.__wrapped__() == name
