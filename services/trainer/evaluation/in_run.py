"""How the policy in training does on held-out prompts, every so many steps.

It touches nothing that the training depends on: prompts, seeds and sampling are its own, and the same every time, so
that what changes from one evaluation to the next is the policy. The run's services are waited for as in a step. The
gold reward service, which nothing is trained on, is not: while it is away an evaluation goes without, says so, and the
next one asks again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rlhf.client.reward import RewardClient
from rlhf.client.reward_types import Reward, ScoreItem
from rlhf.client.tasks import task_group
from rlhf.errors import ServiceError
from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import TRAINING_REWARD, Sample
from rlhf.statistics import MeanWithInterval
from services.trainer.config.online import OnlineRunConfig
from services.trainer.evaluation.evaluate import questions_of, rows_of, summarise
from services.trainer.fleet.peers import Peers
from services.trainer.loading import LoadedRun
from services.trainer.rollouts.collect import Collected, collect
from services.trainer.telemetry.gauges import LateGauges
from services.trainer.telemetry.step import MetricsFile

GOLD = "gold"
"""The name of the gold reward among the rewards of a sample."""
MAX_GOLD_CALLS = 16
"""Calls that are with the gold reward service at once."""
MEANS = {
    "reward_mean": f"reward/{TRAINING_REWARD}",
    "gold_reward_mean": f"reward/{GOLD}",
    "kl": "kl",
    "completion_tokens_mean": "num_tokens",
    "stopped_fraction": "stopped",
    "distinct_2": "distinct_2",
}
"""Names in the file, and in the summary of an evaluation."""


class InRunEvaluation:
    """The evaluations of one run. All ranks divide the prompts; the main one asks for gold and writes down."""

    def __init__(
        self,
        config: OnlineRunConfig,
        loaded: LoadedRun,
        peers: Peers,
        *,
        gauges: LateGauges,
        say: Callable[[str], None],
        ranks: Ranks,
    ) -> None:
        """Args: where to show and say what comes out."""
        self._config = config
        self._items = loaded.heldout
        self._tokenizer = loaded.tokenizer
        self._peers = peers
        self._gauges = gauges
        self._say = say
        self._ranks = ranks
        self._sampling = config.sampling.of_each(config.evaluation.completions)
        self._file = MetricsFile(config.run_dir / "evaluations.jsonl")
        self._evaluated_step = -1
        if ranks.is_main and self._items:
            self._go_on_after(loaded.step if loaded.resumed else -1)

    def is_planned(self, step: int) -> bool:
        """Whether the policy is to be evaluated after so many steps: the same on all ranks."""
        every = self._config.evaluation.every_steps
        return bool(self._items) and (step % every == 0 or step == self._config.training.steps)

    def is_done(self, step: int) -> bool:
        """Whether it was, before the run was resumed. The main rank alone knows."""
        return step == self._evaluated_step

    async def evaluate(self, step: int, *, policy_version: int) -> None:
        """Evaluates the policy as it is served. All ranks call it. Raises: as collect()."""
        started = time.monotonic()
        collected = await collect(
            questions_of(self._items, self._config.training.seed),
            self._sampling,
            self._peers,
            policy_version=policy_version,
            ranks=self._ranks,
        )
        if not self._ranks.is_main:
            return
        self._evaluated_step = step
        if not collected.samples:
            reasons = ", ".join(f"{count} {code}" for code, count in sorted(collected.dropped.items()))
            self._say(f"evaluation after step {step}: no completion can be used ({reasons})")
            return
        samples = await self._with_gold(step, collected.samples)
        rows = rows_of(samples, self._items, lambda ids: str(self._tokenizer.decode(ids, skip_special_tokens=True)))
        self._record(step, policy_version, collected, summarise(rows), time.monotonic() - started)

    def _go_on_after(self, step: int) -> None:
        """Forgets the evaluations of steps that are taken again, and shows the newest that is left."""
        self._file.truncate_after(step)
        rows = self._file.read()
        if rows:
            self._evaluated_step = int(rows[-1]["step"])
            self._gauges.set(rows[-1])

    async def _with_gold(self, step: int, samples: Sequence[Sample]) -> list[Sample]:
        """Returns the samples, with their gold rewards if those can be had."""
        target = self._config.evaluation.gold_target
        if target is None:
            return list(samples)
        try:
            rewards = await self._gold_rewards(target, samples)
        except ServiceError as error:
            self._say(f"evaluation after step {step} goes without the gold reward: {error}")
            return list(samples)
        return [
            replace(sample, rewards={**sample.rewards, GOLD: reward}) if math.isfinite(reward) else sample
            for sample, reward in zip(samples, rewards, strict=True)
        ]

    async def _gold_rewards(self, target: str, samples: Sequence[Sample]) -> list[float]:
        """Returns the gold reward of each sample; NaN where the service has none. Raises: ServiceError."""
        slots = asyncio.Semaphore(MAX_GOLD_CALLS)
        services = self._config.services

        async def score(gold: RewardClient, sample: Sample) -> float:
            rollout = sample.rollout
            item = ScoreItem.tokens(rollout.prompt_ids, rollout.completion_ids, rollout.rollout_id)
            async with slots:
                batch = await gold.score(
                    [item],
                    tokenizer_digest=self._peers.tokenizer_digest,
                    deadline_seconds=services.score_deadline_seconds,
                )
            return next((each.reward for each in batch.results if isinstance(each, Reward)), math.nan)

        async with RewardClient(target, caller=self._peers.caller) as gold, task_group() as tasks:
            scores = [tasks.create_task(score(gold, sample)) for sample in samples]
        return [task.result() for task in scores]

    def _record(
        self,
        step: int,
        policy_version: int,
        collected: Collected,
        summary: Mapping[str, MeanWithInterval],
        seconds: float,
    ) -> None:
        """Writes the evaluation down, shows and says it."""
        means = {name: summary[measure] for name, measure in MEANS.items() if measure in summary}
        row = {
            "policy_version": policy_version,
            "completions": len(collected.samples),
            "dropped": collected.dropped.total(),
            **{name: value.mean for name, value in means.items()},
            **{f"{name}_half_width": each.half_width for name, each in means.items() if each.half_width is not None},
            "seconds": seconds,
        }
        self._file.append(step, row)
        self._gauges.set({"step": step, **row})
        gold = f", gold {means['gold_reward_mean'].format()}" if "gold_reward_mean" in means else ""
        self._say(
            f"evaluation after step {step}: reward {means['reward_mean'].format()}{gold}, KL {means['kl'].format()} "
            f"nats, {means['completion_tokens_mean'].mean:.0f} tokens ({len(collected.samples)} completions, "
            f"{seconds:.1f} s)"
        )
