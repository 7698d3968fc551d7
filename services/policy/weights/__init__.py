"""A weight push at the policy service: received, verified, staged, relayed, and kept for patches to apply to."""
