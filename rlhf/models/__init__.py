"""Models of torch and transformers: loading, forward passes over sequences, and weights as bytes."""
