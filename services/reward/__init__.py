"""The reward service: scores completions, for the trainer and for any other system."""
