"""The watch over rewards: whether they show signs of being hacked, by model version and caller."""
