"""Training on preferences directly, without a reward model."""
