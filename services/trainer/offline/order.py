"""Which examples a step of offline training sees: a function of seed and step, so a resumed run needs no cursor."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlhf.errors import ConfigError
from services.trainer.config.offline import FitConfig


def steps_per_epoch(num_examples: int, config: FitConfig) -> int:
    """Returns the optimizer steps of one pass over the examples."""
    return -(-num_examples // config.examples_per_step)


def num_steps(num_examples: int, config: FitConfig) -> int:
    """Returns the optimizer steps of a whole training: what the learning-rate schedule covers."""
    return config.epochs * steps_per_epoch(num_examples, config)


def batch_indices(step: int, num_examples: int, config: FitConfig) -> Sequence[int]:
    """Returns which examples step `step` (from 0) is taken on; an epoch's order depends on seed and epoch alone."""
    epoch, position = divmod(step, steps_per_epoch(num_examples, config))
    order = _order(config.seed, epoch, num_examples)
    return order[position * config.examples_per_step : (position + 1) * config.examples_per_step]


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, num_examples: int) -> list[int]:
    """The order of an epoch. Kept, for a million examples take half a second to shuffle."""
    order = list(range(num_examples))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


def require_same_run(checkpoint: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming what differs, if a checkpoint's order of examples is not that of this run."""
    for key, value in identity.items():
        if state.get(key) != value:
            raise ConfigError(
                f"{checkpoint} was written with {key.replace('_', ' ')} {state.get(key)}, this run has {value}: the "
                "order of examples would differ; resume with the data and settings that the run began with, or choose "
                "another run_dir"
            )


def examples_digest(examples: Sequence[object]) -> str:
    """Returns the hex BLAKE3 of the examples, in their order; they must have a repr that tells them apart."""
    digest = blake3()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()
