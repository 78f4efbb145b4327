"""The memory of a whole sequence, forward and backward."""
