"""The loop of every online algorithm: START HERE. One step, from top to bottom:

    lookahead.py  collect(): the rollouts of the step; with training.max_policy_lag, later steps are sampled meanwhile
      policy_pushes.py  the present weights go to the policy services (fleet/), if anything is to be sampled from them
      collect.py      policy services sample; each rollout gets rewards and reference log-probabilities as it arrives
      journal.py      ... and is written down, so that a killed run trains on the very same rollouts again
    batch.py      the rollouts as tensors [B, T]
    update.py     old log-probabilities, the algorithm's advantages (ppo.py, grpo.py, ...), losses, optimizer steps
    metrics.py    the step is written down; checkpoint.py saves what the run needs to go on
    in_run.py     now and then, held-out prompts show how good the policy is

The loop is asynchronous so that services are called at once and the TrainerService (control.py) answers meanwhile;
torch works in a thread of its own. On many ranks all of them run this loop, step by step together.
"""

import time

from rlhf.learning.batch import collate
from services.trainer.run import OnlineRun


async def train(run: OnlineRun) -> None:
    """Trains until all steps are done or the run is asked to stop; the policy services then have the last weights.

    Raises: NotReadyError if a service stays away for too long; other ServiceErrors as services answer them; RunError if
        rollouts or numbers are unusable. The weights of the last finished step are then still those of `run`, except
        after a NonFiniteError.
    """
    await run.peers.check()
    await run.evaluate_if_due()
    while run.step < run.config.training.steps and await run.goes_on():
        started = time.monotonic()
        collected = await run.collect()
        batch = collate(collected.samples, run.device)
        update = await run.compute(run.updater.update, batch, run.step + 1)
        run.finish_step(update)
        await run.record(collected, update, seconds=time.monotonic() - started)
        if run.checkpoint_due:
            await run.save_checkpoint()
        await run.evaluate_if_due()
    await run.push()
