"""How good a policy is, and at what distance from the reference."""
