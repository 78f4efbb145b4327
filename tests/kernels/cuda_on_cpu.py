"""Kernels of CUDA C++ that need no more than warps, compiled for the CPU: 32 threads are the lanes of a warp.

The source is that of the GPU. What CUDA adds to C++ is defined here: a warp after another runs, its lanes meet where
they exchange values, and atomics are those of the CPU. Arrays on the "GPU" are NumPy's, with the few methods of CuPy's
that are used.
"""

import ctypes
import re
import subprocess
from types import SimpleNamespace

import numpy as np
from ramnet_np.kernels.cuda.runtime.module import FOLDER

SHIM = r"""
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static std::barrier lanes(32);
static int exchanged[32];
template <class T> T __ldcg(const T* from) { return *from; }
template <class T> T __ldg(const T* from) { return *from; }
inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
inline float fmaxf(float a, float b) { return a < b ? b : a; }
inline double fmax(double a, double b) { return a < b ? b : a; }
float expf(float);
double exp(double);
inline void __syncwarp() { lanes.arrive_and_wait(); }
inline int __shfl_sync(unsigned, int x, int lane) {
    exchanged[threadIdx.x % 32] = x;
    lanes.arrive_and_wait();
    const int result = exchanged[lane];
    lanes.arrive_and_wait();
    return result;
}
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long wanted) {
    __atomic_compare_exchange_n(at, &expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
inline int atomicAdd(int* at, int x) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
static unsigned long long now = 0;
extern "C" void set_clock(unsigned long long milliseconds) { now = milliseconds << 20; }
"""
RUN = r"""
extern "C" void run_{name}(const {params}* p, unsigned blocks) {{
    std::vector<std::thread> warp;
    for (unsigned lane = 0; lane < 32; lane++)
        warp.emplace_back([=] {{
            for (unsigned block = 0; block < blocks; block++)
                for (unsigned first = 0; first < THREADS; first += 32) {{
                    blockIdx.x = block, threadIdx.x = first + lane;
                    {name}(*p);
                    lanes.arrive_and_wait();
                }}
        }});
    for (auto& thread : warp) thread.join();
}}
"""


def compile_for_cpu(specialisation, params, folder):
    """The kernels of a specialisation as a library; ``params``: the name of the struct that all of them take."""
    text = (FOLDER / specialisation.source).read_text()
    headers = re.sub(
        r"asm volatile\(\"mov.u64[^;]*;[^;]*;", "nanoseconds = now;", (FOLDER / "sparse/rows.cuh").read_text()
    )
    common = re.sub(r"asm(?: volatile)?\([^;]*;[^;]*;", "", (FOLDER / "runtime/common.cuh").read_text())
    source = SHIM + common + headers + text + "".join(RUN.format(name=k, params=params) for k in specialisation.kernels)
    source = re.sub(r'#include "[^"]*"|#pragma once|#pragma unroll', "", source)
    (folder / "kernels.cpp").write_text(source)
    defines = [f"-D{name}={value}" for name, value in specialisation.defines]
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        *defines,
        "kernels.cpp",
        "-o",
        "kernels.so",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


class OnDevice(np.ndarray):
    """An array that looks like CuPy's."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self):
        return np.asarray(self).copy()

    def set(self, array):
        self[...] = array


class FakeCuPy:
    """NumPy's functions, as CuPy has them."""

    def __init__(self):
        stream = SimpleNamespace(is_capturing=lambda: False)
        self.pinned = 0
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream, alloc_pinned_memory=self._pinned_memory)

    def __getattr__(self, name):
        function = getattr(np, name)

        def on_device(*args, **kwargs):
            result = function(*args, **kwargs)
            return result.view(OnDevice) if isinstance(result, np.ndarray) else result

        return on_device

    def _pinned_memory(self, size):
        self.pinned += size
        memory = np.empty(size, dtype=np.uint8)
        return SimpleNamespace(ptr=memory.ctypes.data, memory=memory)
