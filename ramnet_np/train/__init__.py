"""Training: the MQAR task, the optimiser, the loop, and whole runs as the command starts them."""
