"""The operation as Numba CUDA kernels, written to be read: the backend "numba-cuda". See docs/numba-cuda.md.

``plain_contents.py`` is the place to start: the memory as one would write it first. The fast kernels compute the same.
"""
