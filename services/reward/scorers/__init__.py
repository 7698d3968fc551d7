"""What gives rewards: models, ensembles, rules, judges, classes of one's own, and sums of them."""
