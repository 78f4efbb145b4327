"""The operation under other frameworks: their tensors in, their tensors out, their gradients.

``torch``, ``jax`` and ``ramnet_ops`` each import their framework when they are imported; nothing else does.
"""
