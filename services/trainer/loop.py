"""The loop of every online algorithm: START HERE. One step, from top to bottom:

    rollouts/lookahead.py     the rollouts of the step; with training.max_policy_lag, later steps are sampled meanwhile
      fleet/policy_pushes.py    new weights are pushed to the policy service before it samples
      rollouts/collect.py       the policy samples; each rollout gets rewards and reference log-probabilities on arrival
      rollouts/journal.py       ... and is stored, so that a killed run trains on the same rollouts again
    rlhf/learning/batch.py    the rollouts as tensors [B, T]
    rlhf/learning/update.py   old log-probabilities, the algorithm's advantages (ppo.py, grpo.py, ...), losses, steps
    telemetry/step.py         the metrics of the step; state/checkpoint.py stores what is needed to continue
    evaluation/in_run.py      every few steps, an evaluation on held-out prompts

docs/architecture.md lists the files that one prompt passes. The loop is asynchronous, so that services are called
concurrently and the TrainerService (service/control.py) answers meanwhile; torch works in a thread of its own. On many
ranks all of them run this loop in step.
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
