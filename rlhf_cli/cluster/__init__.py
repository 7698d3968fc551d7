"""Runs on a Kubernetes cluster: what `rlhf submit` creates there, and what `rlhf runs` does with it."""
