"""`rlhf pipeline`: from a base model and preferences to a better one, stage by stage. START HERE: pipeline.py."""
