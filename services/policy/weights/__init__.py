"""A weight push at the policy service: received, verified, kept, handed on, and given to the engine."""
