"""Training: the optimiser, the learning rate, the loop, trainers for CPU and GPU, checkpoints, metrics."""
