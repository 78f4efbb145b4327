"""How much memory is left, on a machine, in a container and on a GPU, and the error where something needs more."""

from types import SimpleNamespace

import pytest

from ramnet_np.model import memory

MEMINFO = "MemTotal:  900 kB\nMemAvailable:  100 kB\nHugePages_Total:  0\nSwapFree:   20 kB\nOdd:\n"


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A system whose files say this; None: there is no such file."""

    def says(meminfo, *limits):
        paths = tmp_path / "meminfo", tmp_path / "max", tmp_path / "limit_in_bytes"
        for path, text in zip(paths, (meminfo, *limits, None, None), strict=False):
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(memory, "_MEMINFO", paths[0])
        monkeypatch.setattr(memory, "_LIMITS", paths[1:])
        monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)

    return says


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ((MEMINFO,), 1024 * 120),  # swap included
        ((MEMINFO.replace("SwapFree", "Other"),), 1024 * 100),
        ((MEMINFO, "max\n"), 1024 * 120),
        ((MEMINFO, "99000\n"), 99_000),  # a container's
        ((MEMINFO, None, "88000\n"), 88_000),
        ((MEMINFO, "990000\n"), 1024 * 120),
        (("MemTotal: 900 kB\n",), 7 * 4096),  # all that there is, where nothing tells how much is left
        ((None,), 7 * 4096),
        ((None, "20000"), 20_000),
    ],
)
def test_memory_that_is_left(system, said, left):
    system(*said)
    assert memory.available_memory() == left


def test_a_system_that_does_not_tell(system, monkeypatch):
    system(None)
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.available_memory() is None
    memory.require_memory(10**18, "anything")


def test_what_needs_all_that_is_left_fits(system):
    system(MEMINFO)
    memory.require_memory(1024 * 120, "a state")
    with pytest.raises(MemoryError, match=r"a state needs at least 0.0 GB of memory, this machine has 0.0 GB left"):
        memory.require_memory(1024 * 120 + 1, "a state")


def test_memory_of_a_gpu_counts_what_the_pool_can_give_again(monkeypatch):
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(runtime=SimpleNamespace(memGetInfo=lambda: (2 * 10**9, 9 * 10**9))),
        get_default_memory_pool=lambda: SimpleNamespace(free_bytes=lambda: 10**9),
    )
    monkeypatch.setattr(memory, "gpu_namespace", lambda: cupy)
    memory.require_memory(3 * 10**9, "a model", "gpu")
    with pytest.raises(MemoryError, match=r"a model needs at least 4.0 GB of memory, the GPU has 3.0 GB left"):
        memory.require_memory(4 * 10**9, "a model", "gpu")
