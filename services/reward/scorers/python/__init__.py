"""A user's own class as a scorer, in a process of its own."""
