"""Checkpoints on disk, made or fetched before a service loads them."""
