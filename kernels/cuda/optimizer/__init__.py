"""The optimiser of a training run on the GPU, for ``ramnet_np/train/gpu_trainer.py`` alone; no backend knows it."""
