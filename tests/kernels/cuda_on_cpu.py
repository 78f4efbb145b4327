"""Kernels of CUDA C++ compiled for the CPU: every thread of a block is a thread, one block runs after another.

The source is that of the GPU. What CUDA adds to C++ is defined here: the threads of a warp and of a block meet where
they exchange values or wait for each other, and atomics are those of the CPU. A block finds NaN in shared memory. The
few lines of PTX are replaced or, where a kernel in double does not need them, left out. Arrays on the "GPU" are
NumPy's, with the few methods of CuPy's that are used.
"""

import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from ramnet_np.kernels.cuda.runtime.module import FOLDER

SHIM = r"""
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
using std::min, std::max;
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static __attribute__((section("shared")))
extern char __start_shared[], __stop_shared[];  // of all that is in shared memory
alignas(16) __shared__ double dynamic_memory[1 << 15] __attribute__((used));
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim, blockDim{BLOCK_THREADS};
static std::barrier block_meets(BLOCK_THREADS);
static std::vector<std::unique_ptr<std::barrier<>>> warp_meets;
static unsigned long long exchanged[BLOCK_THREADS], now = 1 << 20;
extern "C" void set_clock(unsigned long long milliseconds) { now = milliseconds << 20; }
template <class T> T __ldcg(const T* from) { return *from; }
template <class T> T __ldg(const T* from) { return *from; }
template <class To, class From> To bits_as(From from) { To to; memcpy(&to, &from, sizeof to); return to; }
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
static char near_shared;  // addresses in shared memory are counted from here, and take 32 bits
inline size_t __cvta_generic_to_shared(const void* shared) { return (const char*)shared - &near_shared; }
inline void* __cvta_shared_to_generic(size_t address) { return &near_shared + int(unsigned(address)); }
#define __builtin_assume(condition)
inline void __syncwarp() { warp_meets[threadIdx.x / 32]->arrive_and_wait(); }
inline void __syncthreads() { block_meets.arrive_and_wait(); }
template <class T> T __shfl_sync(unsigned, T x, int lane) {
    memcpy(&exchanged[threadIdx.x], &x, sizeof x);
    __syncwarp();
    memcpy(&x, &exchanged[threadIdx.x / 32 * 32 + lane % 32], sizeof x);
    __syncwarp();
    return x;
}
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) { return __shfl_sync(~0u, x, threadIdx.x % 32 ^ mask); }
template <class T> T __shfl_up_sync(unsigned, T x, int distance) {
    const int lane = threadIdx.x % 32;
    return __shfl_sync(~0u, x, lane < distance ? lane : lane - distance);
}
inline unsigned __ballot_sync(unsigned, bool x) {
    unsigned mask = 0;
    exchanged[threadIdx.x] = x;
    __syncwarp();
    for (int lane = 0; lane < 32; lane++) mask |= unsigned(exchanged[threadIdx.x / 32 * 32 + lane]) << lane;
    __syncwarp();
    return mask;
}
inline bool __any_sync(unsigned, bool x) { return __ballot_sync(~0u, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
// What a lane has of a product on the tensor cores (tf32.cuh). These see 11 bits of each number, and round sums down.
struct Fragments { float a[4], b[2]; };
static Fragments fragments[BLOCK_THREADS];
inline double tf32(float x) { return bits_as<float>(bits_as<unsigned>(x) & 0xffffe000u); }
inline void multiply_add_on_cpu(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x - lane;
    memcpy(fragments[threadIdx.x].a, a, sizeof a), memcpy(fragments[threadIdx.x].b, b, sizeof b);
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        double sum = c[i];
        for (unsigned k = 0; k < 8; k++) {
            const Fragments &of_row = fragments[warp + lane / 4 * 4 + k % 4];
            const Fragments &of_column = fragments[warp + (lane % 4 * 2 + i % 2) * 4 + k % 4];
            sum += tf32(of_row.a[i / 2 + k / 4 * 2]) * tf32(of_column.b[k / 4]);
        }
        c[i] = float(sum);
        if (fabs(c[i]) > fabs(sum)) c[i] = nextafterf(c[i], 0);
    }
    __syncwarp();
}
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long wanted) {
    __atomic_compare_exchange_n(at, &expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
inline unsigned atomicMin(unsigned* at, unsigned x) {
    unsigned before = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (x < before && !__atomic_compare_exchange_n(at, &before, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return before;
}
inline int atomicCAS(int* at, int expected, int wanted) {
    __atomic_compare_exchange_n(at, &expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
template <class Params> void call_kernel(void (*kernel)(Params), const void* p) { kernel(*(const Params*)(p)); }
template <class T> T atomicAdd(T* at, T x) { return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST); }
inline unsigned atomicOr(unsigned* at, unsigned x) { return __atomic_fetch_or(at, x, __ATOMIC_SEQ_CST); }
"""
RUN = r"""
extern "C" void run_{name}(const void* p, unsigned x, unsigned y, unsigned z) {{
    warp_meets.clear(), gridDim = {{x, y, z}};
    for (int warp = 0; warp < BLOCK_THREADS / 32; warp++) warp_meets.push_back(std::make_unique<std::barrier<>>(32));
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < BLOCK_THREADS; thread++)
        threads.emplace_back([=] {{
            for (unsigned block = 0; block < x * y * z; block++) {{
                blockIdx = {{block % x, block / x % y, block / x / y}}, threadIdx.x = thread;
                if (thread == 0) memset(__start_shared, 255, __stop_shared - __start_shared);
                block_meets.arrive_and_wait();
                call_kernel(kernel_{name}, p);
                block_meets.arrive_and_wait();
            }}
        }});
    for (auto& thread : threads) thread.join();
}}
"""
PTX = [
    (r'asm\("mma\.sync.*?\)\);', "multiply_add_on_cpu(c, a, b);"),
    (r'asm volatile\("cp\.async\.ca.*?;"[^;]*;', "memcpy(shared, global, BYTES);"),
    (r'asm volatile\("ld\.global\.v2\.b32.*?\);', "row = from->row, info = from->info;"),
    (r'asm volatile\("ld\.shared.*?\);', "memcpy(&x, __cvta_shared_to_generic(address), sizeof x);"),
    (r'asm volatile\("st\.shared.*?\);', "memcpy(__cvta_shared_to_generic(address), &x, sizeof x);"),
    (r'asm volatile\("st\.global.*?\);', "memcpy(to, word, BYTES);"),
    (r'asm\("max.f64.*?\);', "a = a < b ? b : a;"),
    (r'asm volatile\("mov.u64 %0, %%globaltimer.*?\);', "nanoseconds = now;"),
    (r'asm\("\{.*?\(b_high\)\);', ";"),  # of keys in float
    (r"asm(?: volatile)?\([^;]*\);", ";"),
    (r"asm(?: volatile)?\([^;]*;[^;]*\);", ";"),
    (r"extern __shared__ double shared_memory\[\];", "double* const shared_memory = dynamic_memory;"),
]


def source_for_cpu(name, found=None):
    """A source with what it includes, each file once, without PTX; ``found``: names that are included already."""
    found = set() if found is None else found
    if name in found:
        return ""
    found.add(name)
    text = (FOLDER / name).read_text()
    for ptx, instead in PTX:
        text = re.sub(ptx, instead, text, flags=re.DOTALL)
    return re.sub(r'#include "([^"]*)"', lambda include: source_for_cpu(include[1], found), text)


def compile_for_cpu(specialisation, folder, threads="THREADS"):
    """The kernels of a specialisation as a library; ``threads``: of a block."""
    source = re.sub(r"#pragma (once|unroll).*", "", source_for_cpu(specialisation.source))
    source = re.sub(r"__launch_bounds__\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", source)
    source = re.sub(r"(__global__ void\s+)(\w+)\(", r"\1kernel_\2(", source)
    runs = [RUN.format(name=name) for name in specialisation.kernels]
    defines = tuple(f"-D{name}={value}" for name, value in (*specialisation.defines, ("BLOCK_THREADS", threads)))
    # a file of its own for each caller, so that no two share the library's variables
    (folder / "kernels.so").write_bytes(_compiled("".join([SHIM, source, *runs]), defines, _folder_of_run(folder)))
    return ctypes.CDLL(str(folder / "kernels.so"))


def _folder_of_run(folder):
    """Where pytest's processes have their folders, each one of its own; None where there is one process."""
    return next((above.parent for above in folder.parents if above.name.startswith("popen-gw")), None)


@functools.cache
def _compiled(source, defines, shared):
    """The library of a source, compiled once for all tests of a run: by the process that asks first."""
    if shared is None:
        with tempfile.TemporaryDirectory() as folder:
            return _compile(source, defines, Path(folder))
    import fcntl  # not on Windows, where none of this runs

    folder = shared / hashlib.sha256(repr((source, defines)).encode()).hexdigest()
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        library = (folder / "kernels.so").read_bytes() if done.exists() else _compile(source, defines, folder)
        done.touch()
    return library


def _compile(source, defines, folder):
    (folder / "kernels.cpp").write_text(source)
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", *defines]
    subprocess.run([*command, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    return (folder / "kernels.so").read_bytes()


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
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream, alloc_pinned_memory=_pinned_memory)

    def __getattr__(self, name):
        function = getattr(np, name)

        def on_device(*args, **kwargs):
            result = function(*args, **kwargs)
            return result.view(OnDevice) if isinstance(result, np.ndarray) else result

        return on_device


def _pinned_memory(size):
    memory = np.empty(size, dtype=np.uint8)
    return SimpleNamespace(ptr=memory.ctypes.data, memory=memory)
