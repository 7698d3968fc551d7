"""Training of reward models and ensembles of them, with a report."""
