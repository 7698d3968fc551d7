"""Configuration of every training."""
