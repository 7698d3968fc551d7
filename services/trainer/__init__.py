"""The trainer: reward-model training and PPO. Start reading at loop.py."""
