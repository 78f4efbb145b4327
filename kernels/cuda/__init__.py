"""The operation in CUDA C++ on CuPy arrays: the default backend for them. Sources, layouts, launches."""
