"""Everything else of a model on the GPU: norms, products, losses, other mixers, AdamW."""
