"""What training reads: prompts, conversations and preferences, from files or data sets, as token ids."""
