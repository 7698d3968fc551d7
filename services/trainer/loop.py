"""The PPO loop: START HERE. One step, from top to bottom:

    prompts.py   the next prompts
    collect.py   policy services sample; each rollout is scored and gets its reference log-probabilities as it arrives
    batch.py     the rollouts as tensors [B, T]
    update.py    KL, token rewards, values, advantages, losses, optimizer steps
    publish.py   the new weights go to the policy services
    metrics.py   the step is written down; checkpoint.py saves what the run needs to go on

The loop is asynchronous so that services are called at once and the TrainerService (control.py) answers meanwhile;
torch works in a thread of its own.
"""

import asyncio
import time

from rlhf_services.trainer.metrics import describe_step
from rlhf_services.trainer.rollouts.batch import collate
from rlhf_services.trainer.rollouts.collect import collect
from rlhf_services.trainer.run import PpoRun


async def train(run: PpoRun) -> None:
    """Trains until all steps are done or the run is asked to stop.

    Raises: NotReadyError if a service stays away for too long; other ServiceErrors as services answer them; RunError if
        rollouts or numbers are unusable. The weights of the last finished step are then still those of `run`, except
        after a NonFiniteError.
    """
    training_config, publisher = run.config.training, run.publisher
    await run.peers.check()
    await publisher.publish(run.policy_version)
    while run.step < training_config.steps and await run.control.between_steps(run.save_checkpoint):
        started = time.monotonic()
        prompts = run.prompts.draw(training_config.prompts_per_step)
        collected = await collect(
            prompts,
            run.sampling,
            run.peers,
            policy_version=run.policy_version,
            bring_current=publisher.bring_current,
        )
        collected.require_enough(training_config.max_dropped_fraction)
        batch = collate(collected.samples, run.device)
        training = await asyncio.to_thread(run.updater.update, batch, run.step + 1)
        run.finish_step()
        publish_seconds = await publisher.publish(run.policy_version)
        seconds = time.monotonic() - started
        metrics = describe_step(collected, training, publisher, publish_seconds=publish_seconds, seconds=seconds)
        await run.record(metrics, collected.dropped)
        if run.checkpoint_due:
            await run.save_checkpoint()
