"""How much of the weights real PPO steps change, and what a patch of it weighs, by learning rate.

A part of bench/weight_push.py; alone: python bench/weight_push_fractions.py [--rates 1e-6 5e-6 1e-5] [--steps 3].
The steps are those of fixed_work.py, taken in this process: completions sampled from the policy as it is, scored by a
reward model, with the log-probabilities of the reference; then the trainer's own PPO update with its defaults, and the
trainer's own snapshot. A receiver that is sent nothing but the patches must have the trainer's digest after each step.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.fixed_work import FixedWork
from bench.measurements import machine_facts, positive, say, show, write_json
from bench.own_sampling import complete
from rlhf.client.push_messages import push_messages
from rlhf.learning.batch import collate
from rlhf.learning.sample import TRAINING_REWARD, Sample
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from rlhf.learning.update import Updater
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_sequences
from rlhf.models.sparse_patch import decode, new_values
from rlhf.models.weights import tensor_info
from rlhf.process import keep_freed_memory
from rlhf.rollout import Rollout
from rlhf.weights import Encoding, TensorInfo, WeightsManifest
from services.trainer.config.online import PpoRunConfig
from services.trainer.loading import make_updater

RATES = (1e-6, 5e-6, 1e-5)
STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPatch:
    """What one optimizer step changed, and what it takes to send it."""

    learning_rate: float
    step: int
    """From 1; the weights before the first are those of the file."""
    num_elements: int
    num_changed: int
    full_bytes: int
    """All messages of a full push, header included."""
    patch_bytes: int
    """All messages of the patch, header included."""
    header_bytes: int
    """Of them its header."""
    snapshot_seconds: float
    """Comparing, compressing, copying and hashing."""
    digest_is_equal: bool
    """Whether a receiver of all patches so far has the digest of the trainer's weights."""

    @property
    def changed_fraction(self) -> float:
        """Of all elements."""
        return self.num_changed / self.num_elements

    @property
    def bytes_per_change(self) -> float:
        """Header included."""
        return self.patch_bytes / max(self.num_changed, 1)

    @property
    def times_smaller(self) -> float:
        """Than the full push."""
        return self.full_bytes / self.patch_bytes


def measure_fractions(
    work: FixedWork,
    *,
    rates: Sequence[float] = RATES,
    steps: int = STEPS,
    num_prompts: int | None = None,
    report: Callable[[str], None] = say,
) -> list[StepPatch]:
    """Returns what each step changed, by rate and step; every rate begins at the model's own weights.

    Args:
        work: the prompts, models and lengths.
        rates: learning rates; steps: optimizer steps at each.
        num_prompts: how many of the prompts a step takes; None: all.
        report: told in a line of each step.
    """
    keep_freed_memory()
    measured = []
    for rate in rates:
        run = _Run(work, rate, num_prompts or len(work.prompts))
        for step in range(1, steps + 1):
            measured.append(run.step(step))
            report(_line(measured[-1]))
    return measured


class _Run:
    """PPO at one learning rate, its snapshots, and a receiver of its patches."""

    def __init__(self, work: FixedWork, rate: float, num_prompts: int) -> None:
        self._work = work
        self._rate = rate
        self._prompts = work.prompts[:num_prompts]
        self._reference = load_policy(work.policy_path, dtype="bfloat16").eval()
        self._reward = ScalarModel.load(work.scalar_path, "bfloat16").eval()
        config = PpoRunConfig.model_validate(
            {
                "run_dir": "unused",
                "model": {"path": work.policy_path},
                "prompts": {"path": "unused"},
                "critic": {"path": work.scalar_path},
                "optimizer": {"learning_rate": rate},
                "training": {"prompts_per_step": num_prompts},
            }
        )
        self._module = PolicyModel(load_policy(work.policy_path, dtype="bfloat16"))
        self._policy = TrainedModel("policy", self._module, config.optimizer, total_steps=config.training.steps)
        self._updater = _updater(config, self._policy, work)
        self._snapshot = take_snapshot(self._policy, 1, None, patches=True)
        self._received = [tensor.clone() for tensor in self._snapshot.tensors]

    def step(self, step: int) -> StepPatch:
        """Takes one step and returns what it changed."""
        self._updater.update(collate(self._samples(step)), step)
        started = time.perf_counter()
        self._snapshot = take_snapshot(self._policy, step + 1, self._snapshot, patches=True)
        seconds = time.perf_counter() - started
        patch = self._snapshot.patch
        assert patch is not None, "the model's tensors stay what they are"
        infos = _receive(self._received, self._snapshot)
        sizes = {encoding: _message_sizes(self._snapshot, encoding) for encoding in ("full", "sparse_patch")}
        return StepPatch(
            learning_rate=self._rate,
            step=step,
            num_elements=sum(tensor.numel() for tensor in self._snapshot.tensors),
            num_changed=patch.num_changed,
            full_bytes=sum(sizes["full"]),
            patch_bytes=sum(sizes["sparse_patch"]),
            header_bytes=sizes["sparse_patch"][0],
            snapshot_seconds=seconds,
            digest_is_equal=WeightsManifest(tuple(infos)).digest == self._snapshot.digest,
        )

    @torch.no_grad()
    def _samples(self, step: int) -> list[Sample]:
        """Rollouts of the policy as it is, with all that an update needs to know of them."""
        completion_ids = complete(self._module.model, self._prompts, self._work, seed=self._work.seed + step)
        sequences = pad_sequences(self._prompts, completion_ids)
        logprobs = completion_logprobs(self._module, sequences, self._work.temperature)
        ref_logprobs = completion_logprobs(self._reference, sequences, self._work.temperature)
        rewards = sequence_scores(self._reward, sequences)
        return [
            Sample(
                rollout=Rollout(
                    rollout_id=f"{number}/0",
                    group_id=str(number),
                    prompt_ids=prompt_ids,
                    completion_ids=ids,
                    logprobs=logprobs[number, : len(ids)].tolist(),
                    policy_versions=[step] * len(ids),
                    finish_reason="length",
                ),
                rewards={TRAINING_REWARD: float(rewards[number])},
                ref_logprobs=ref_logprobs[number, : len(ids)].tolist(),
            )
            for number, (prompt_ids, ids) in enumerate(zip(self._prompts, completion_ids, strict=True))
        ]


def _updater(config: PpoRunConfig, policy: TrainedModel, work: FixedWork) -> Updater:
    critic = ScalarModel.load(work.scalar_path, "bfloat16")
    trained = TrainedModel("critic", critic, config.critic_optimizer, total_steps=config.training.steps)
    return make_updater(config, policy, critic=trained)


def _receive(tensors: list[Tensor], snapshot: WeightsSnapshot) -> list[TensorInfo]:
    """Applies a snapshot's patch to the tensors in place, as a receiver does; returns what they are then."""
    header = snapshot.header("sparse_patch")
    frames = iter(snapshot.payload("sparse_patch"))
    infos = []
    for info, part, tensor in zip(header.manifest.tensors, header.parts, tensors, strict=True):
        if part.changed_count:
            indices, steps = decode(part, next(frames), info.dtype, tensor.numel(), name=info.name)
            flat = tensor.view(-1)
            flat[indices] = new_values(flat[indices], steps)
        infos.append(tensor_info(info.name, tensor))
    return infos


def _message_sizes(snapshot: WeightsSnapshot, encoding: Encoding) -> list[int]:
    """Returns the bytes of each message of a push, the header's first."""
    return [len(message) for message in push_messages(snapshot.header(encoding), snapshot.payload(encoding))]


def rows(patches: Sequence[StepPatch]) -> list[list[str]]:
    """Returns the table of what was measured, one row for each step (HEADINGS)."""
    return [
        [
            f"{each.learning_rate:g}",
            str(each.step),
            f"{each.changed_fraction:.3%}",
            f"{each.patch_bytes:,}",
            f"{each.bytes_per_change:.2f}",
            f"{each.times_smaller:.0f}",
            f"{each.snapshot_seconds:.2f}",
            "yes" if each.digest_is_equal else "NO",
        ]
        for each in patches
    ]


HEADINGS = ("learning rate", "step", "changed", "patch bytes", "a change", "times smaller", "seconds", "digest equal")


def _line(patch: StepPatch) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(HEADINGS, rows([patch])[0], strict=True))


def main() -> int:
    """Measure, print the table; returns 1 if a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates")
    parser.add_argument("--steps", type=positive, default=STEPS, help="optimizer steps at each")
    parser.add_argument("--prompts", type=positive, help="of a step; all 32 if absent")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for the models")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    arguments = parser.parse_args()
    work = FixedWork.prepare(arguments.folder)
    patches = measure_fractions(work, rates=arguments.rates, steps=arguments.steps, num_prompts=arguments.prompts)
    show("What a PPO step changes", HEADINGS, rows(patches), to_stderr=arguments.json == "-")
    if arguments.json:
        steps = [asdict(each) for each in patches]
        write_json({"work": work.describe(), "machine": machine_facts(), "steps": steps}, arguments.json)
    return 0 if all(each.digest_is_equal for each in patches) else 1


if __name__ == "__main__":
    sys.exit(main())
