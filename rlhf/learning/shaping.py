"""From the reward service's scores to the rewards that are trained on."""

from torch import Tensor

from rlhf.algorithms.rewards import RunningMoments, clip_rewards, missing_stop_penalty, overlong_penalty
from rlhf.learning.batch import Batch
from rlhf.learning.config import RewardShapingConfig


class RewardShaper:
    """Shapes the rewards of one run; remembers what their running normalisation needs."""

    def __init__(self, config: RewardShapingConfig, max_completion_tokens: int) -> None:
        self._config = config
        self._max_completion_tokens = max_completion_tokens
        self._moments = RunningMoments()

    def shape(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Returns the shaped rewards [B] of a step, whose own rewards count in the running moments, and metrics."""
        config, rewards = self._config, batch.rewards
        clipped_fraction = 0.0
        if config.normalize == "running":
            self._moments.update(rewards)
            # While all rewards were equal there is no scale, and nothing to learn either.
            rewards = self._moments.normalize(rewards) if self._moments.std > 0 else rewards - self._moments.mean
        if config.clip is not None:
            rewards, clipped = clip_rewards(rewards, config.clip)
            clipped_fraction = float(clipped.float().mean())
        rewards = rewards + missing_stop_penalty(batch.stopped, config.missing_stop_penalty)
        if config.overlong_buffer_tokens > 0:
            rewards = rewards + config.overlong_penalty * overlong_penalty(
                batch.sequences.completion_lengths, self._max_completion_tokens, config.overlong_buffer_tokens
            )
        return rewards, {
            "shaped_reward_mean": float(rewards.mean()),
            "reward_clipped_fraction": clipped_fraction,
        }

    def state_dict(self) -> dict[str, float]:
        """Returns what load_state_dict restores exactly, also by way of JSON."""
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on where state_dict() was taken. Raises: KeyError or ValueError if it is none."""
        self._moments.load_state_dict(state)
