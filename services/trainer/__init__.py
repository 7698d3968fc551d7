"""The trainer: every training there is, listed in trainings.py. Start reading at loop.py."""
