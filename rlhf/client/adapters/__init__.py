"""The reward service as what other frameworks call a reward: functions for TRL, verl and verifiers. No torch."""
