"""The policy service: samples completions and takes new weights while it serves."""
