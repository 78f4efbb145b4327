"""Rows of a sparse state: found by slot number on the GPU, in its own memory or in the host's."""
