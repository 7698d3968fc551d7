"""Training on data that is there already: SFT, reward models, DPO and its relatives."""
