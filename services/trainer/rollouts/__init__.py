"""From prompts to scored rollouts: collected, journaled, and sampled ahead of training."""
