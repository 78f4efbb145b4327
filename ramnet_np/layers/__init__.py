"""Everything else that a model is made of, forward and backward side by side: products, norms, losses, mixers."""
