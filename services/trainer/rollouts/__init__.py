"""From prompts to scored rollouts as tensors, and the new weights back to the policy services."""
