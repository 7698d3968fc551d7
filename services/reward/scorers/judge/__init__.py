"""A language model that is asked how good completions are."""
