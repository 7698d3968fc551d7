"""The wire formats of other systems that the reward service speaks over HTTP."""
