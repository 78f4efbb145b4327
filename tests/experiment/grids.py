"""Grids that run in seconds."""

TINY = """
title = "tiny"
epochs = 2
seeds = [0, 1]
learning_rates = [1e-3, 1e-2]
validation = 10
evaluations = 2

[model]
width = 16
heads = 1
order = 2
radix = 2
top_k = 2
ffn = "none"

[data]
vocab = 32
train = [[2, 12, 40], [3, 16, 24]]
test = [[2, 12, 8], [3, 20, 8]]

[train]
batch = 8
learning_rate_floor = 0.0
warmup = 2

[[points]]
name = "a"

[[points]]
name = "b"
model = { radix = 4 }
learning_rate = 3e-3
seeds = [5]

[quick]
points = ["a"]
epochs = 1
seeds = [0]
"""
