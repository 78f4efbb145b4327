"""The operation as Numba CUDA kernels, written to be read: the backend "numba-cuda". See docs/numba-cuda.md."""
