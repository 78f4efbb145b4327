"""A sparse state: rows found by slot number, on the GPU or in the host's memory, and numbers for a segment's slots."""
