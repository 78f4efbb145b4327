"""Logits to addresses: the decoder, forward and backward."""
