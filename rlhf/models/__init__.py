"""Transformer models in torch: loading, forward passes over batches of sequences, and weights as bytes."""
