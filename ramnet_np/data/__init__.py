"""Data sets that name their batches by step: associative recall (MQAR), text, made-up facts."""
