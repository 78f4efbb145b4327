"""One token: decode, write and read in place."""
