"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): groups that teach nothing are replaced by the next prompts.

A group whose rewards are all equal has advantages of 0, so it carries no gradient. It is left out and counted, and as
many prompts more are drawn and collected, until the step has all its groups. Nothing here is left to chance: what is
drawn follows from what came back, so a replay of the journal draws the same, and so do all ranks.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby

from rlhf.rollout import Prompt
from rlhf.run_errors import RunError
from services.trainer.rollouts.collect import Collected
from services.trainer.rollouts.scoring import Sample


def rewards_differ(group: Sequence[Sample]) -> bool:
    """Whether a group of samples carries a gradient: at least two, not all of one reward."""
    return len({sample.reward for sample in group}) > 1


async def collect_groups(
    draw: Callable[[int], list[Prompt]],
    num_prompts: int,
    collect_prompts: Callable[[Sequence[Prompt]], Awaitable[Collected]],
    keep: Callable[[Sequence[Sample]], bool] = rewards_differ,
    max_rounds: int = 1,
) -> Collected:
    """Returns the samples of num_prompts groups worth keeping, in the order of drawing; of fewer after the last round.

    Args:
        draw: returns the next prompts; what is drawn stays drawn, kept or not.
        num_prompts: groups that the step wants.
        collect_prompts: samples and scores some prompts, such as collect() with the step's journal.
        keep: whether a group (the samples of one prompt that were not dropped) is worth training on.
        max_rounds: how often prompts are drawn, the first time included.
    Raises: RunError if not one group is worth keeping; what collect_prompts raises.
    """
    whole = Collected()
    num_kept = num_drawn = 0
    for _ in range(max_rounds):
        prompts = draw(num_prompts - num_kept)
        num_drawn += len(prompts)
        num_kept += _add(whole, await collect_prompts(prompts), keep)
        if num_kept == num_prompts:
            break
    # Samples that were all dropped for want of a score are another fault, which require_enough() names.
    if num_kept == 0 and whole.uniform_groups:
        raise RunError(
            f"the completions of each of {num_drawn} prompts got equal rewards, in {max_rounds} rounds: there is "
            "nothing to learn from. Raise group_size or the temperature, choose prompts that the policy solves "
            "sometimes, or look at the reward service"
        )
    return whole


def _add(whole: Collected, part: Collected, keep: Callable[[Sequence[Sample]], bool]) -> int:
    """Adds a round to the step; returns how many of its groups were kept."""
    num_kept = 0
    for _, samples in groupby(part.samples, key=lambda sample: sample.rollout.group_id):
        group = list(samples)
        if keep(group):
            whole.samples += group
            num_kept += 1
        else:
            whole.uniform_groups += 1
            whole.uniform_rollouts += len(group)
    whole.dropped.update(part.dropped)
    whole.generate_seconds += part.generate_seconds
    whole.score_wait_seconds += part.score_wait_seconds
    whole.reference_wait_seconds += part.reference_wait_seconds
    return num_kept
