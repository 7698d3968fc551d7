"""Pushes to the real policy service with real vLLM, as the trainer makes them, and what each phase of them takes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.fixed_work import FixedWork
from bench.measurements import say
from rlhf.client.policy import PolicyClient
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel
from rlhf.process import keep_freed_memory
from rlhf.rollout import Prompt, Sampling
from rlhf.weights import Encoding
from rlhf_cli.local.services import ENVIRONMENT, LocalServices
from rlhf_cli.local.supervisor import Supervisor

Mode = Literal["packed", "in_place"]
MODES: tuple[Mode, ...] = ("packed", "in_place")
ENCODINGS: tuple[Encoding, ...] = ("full", "sparse_patch")
CHANGED_FRACTION = 0.01
READY_TIMEOUT_SECONDS = 300.0
WARM_UP_PUSHES = 2
"""Of each kind."""
UNUSED_ID = 0
"""A stop id that the model does not sample, so that completions have their full length."""
SAMPLINGS = 4
"""Of the fixed work's prompts; the first two warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One push, and the seconds of its phases."""

    encoding: Encoding
    num_bytes: int
    """Of the payload."""
    snapshot_seconds: float
    """Copying, comparing, compressing and hashing in the trainer."""
    stage_seconds: float
    """From the header until the weights are whole and verified, as the service says."""
    pause_seconds: float
    """Without a token sampled."""
    call_seconds: float
    """As the trainer sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """What was measured in one of the CPU modes."""

    cpu_weights: Mode
    tokens_per_second: float
    """Of the fixed work's prompts, sampled at once; the median of several times."""
    warm_up: tuple[Push, ...]
    """The first WARM_UP_PUSHES of each kind, which no median includes."""
    pushes: tuple[Push, ...]


async def measure_mode(mode: Mode, work: FixedWork, folder: Path, *, num_pushes: int) -> ModeResult:
    """Starts a policy service, and returns how fast it samples and takes pushes.

    Raises: ServiceDiedError if the service does not come up; ServiceError if it fails.
    """
    keep_freed_memory()  # as the trainer does
    with Supervisor(folder / "logs", say) as supervisor:
        services = LocalServices(supervisor, folder / "services.toml", environment=ENVIRONMENT)
        flags = ["--model.path", str(work.policy_path), "--vllm.cpu_weights", mode]
        policy = services.start(f"policy-{mode}", "policy", flags)
        services.wait_ready([policy], READY_TIMEOUT_SECONDS, lambda states: None)
        async with PolicyClient(policy.target) as client:
            rates = sorted([await _tokens_per_second(client, work) for _ in range(SAMPLINGS)][2:])
            pushes = await _push(client, work, num_pushes + WARM_UP_PUSHES)
    return ModeResult(
        cpu_weights=mode,
        tokens_per_second=rates[len(rates) // 2],
        warm_up=tuple(push for kind in pushes for push in kind[:WARM_UP_PUSHES]),
        pushes=tuple(push for kind in pushes for push in kind[WARM_UP_PUSHES:]),
    )


async def _tokens_per_second(client: PolicyClient, work: FixedWork) -> float:
    prompts = [Prompt(group_id=str(number), prompt_ids=ids, seed=number) for number, ids in enumerate(work.prompts)]
    sampling = Sampling(max_new_tokens=work.new_tokens, temperature=work.temperature, stop_ids=(UNUSED_ID,))
    started = time.perf_counter()
    num_tokens = sum([len(rollout.completion_ids) async for rollout in client.generate(prompts, sampling)])
    return num_tokens / (time.perf_counter() - started)


async def _push(client: PolicyClient, work: FixedWork, num_pushes: int) -> list[list[Push]]:
    """Returns pushes of the one kind, then of the other, each of weights of which 1 % of the elements are new.

    They do not take turns: a service that gets patches gives back the memory that the next full push would need.
    """
    module = PolicyModel(load_policy(work.policy_path, dtype="bfloat16"))
    model = TrainedModel("policy", module, OptimizerConfig(), total_steps=1)
    generator = torch.Generator().manual_seed(0)
    snapshot: WeightsSnapshot | None = None
    pushes: list[list[Push]] = []
    for kind, encoding in enumerate(ENCODINGS):
        pushes.append([])
        for number in range(num_pushes):
            _change(module, generator)
            started = time.perf_counter()
            snapshot = take_snapshot(model, kind * num_pushes + number + 1, snapshot, patches=True)
            pushes[-1].append(await _push_one(client, snapshot, encoding, time.perf_counter() - started))
    return pushes


async def _push_one(
    client: PolicyClient, snapshot: WeightsSnapshot, encoding: Encoding, snapshot_seconds: float
) -> Push:
    header = snapshot.header(encoding)
    patch = snapshot.patch if encoding == "sparse_patch" else None
    started = time.perf_counter()
    result = await client.update_weights(header, snapshot.payload(encoding))
    return Push(
        encoding=encoding,
        num_bytes=patch.num_bytes if patch else snapshot.manifest.num_bytes,
        snapshot_seconds=snapshot_seconds,
        stage_seconds=result.stage_seconds,
        pause_seconds=result.pause_seconds,
        call_seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def _change(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Moves about 1 % of the elements to a neighbouring value, as a small optimizer step does."""
    for parameter in module.parameters():
        chosen = torch.rand(parameter.shape, generator=generator) < CHANGED_FRACTION
        bits = parameter.view(torch.int16)
        bits.add_(chosen.to(torch.int16))
