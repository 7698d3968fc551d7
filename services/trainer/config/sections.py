"""Sections of configuration that several kinds of training share, and those that all online runs have."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from rlhf.algorithms.variants import PAIR_VARIANTS, SMOOTHED_VARIANTS, VARIANTS
from rlhf.config import Port, Section
from rlhf.learning.config import KlConfig, OptimizerConfig
from rlhf.rollout import Sampling
from rlhf.serving.config import ServerConfig
from rlhf.serving.directory import POLICY, REFERENCE, REWARD, TRAINER

if TYPE_CHECKING:
    PairVariant: TypeAlias = str
    AnyVariant: TypeAlias = str
else:
    PairVariant, AnyVariant = Literal[PAIR_VARIANTS], Literal[tuple(VARIANTS)]

FORMS = (
    "'host:port', 'dns:///name:port', 'kubernetes:///service:port', 'kubernetes:///namespace/service:port' or "
    "'file:///path'"
)


def check_entry(entry: str) -> str:
    """Returns the entry. Raises: ValueError if it has none of the forms of services.policy_targets."""
    scheme, mark, rest = entry.partition("://")
    if not mark:
        check_address(entry)
    elif scheme not in ("dns", "kubernetes", "file") or not rest.startswith("/"):
        raise ValueError(f"'{entry}' is no form of target; write {FORMS}")
    elif scheme == "file":
        if len(rest) == 1 or rest.endswith("/"):
            raise ValueError(f"'{entry}' names no file; write 'file:///path', with one 'host:port' on each line of it")
    else:
        *namespaces, service = rest[1:].split("/")
        check_address(service)
        if len(namespaces) > (scheme == "kubernetes") or "" in namespaces:
            raise ValueError(f"'{entry}' has parts that are too many or empty; write {FORMS}")
    return entry


def check_address(address: str) -> str:
    """Returns the address. Raises: ValueError if it is not "host:port"."""
    host, _, port = address.rpartition(":")
    is_host = re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]", host)
    if not is_host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"'{address}' is not 'host:port' with a port from 1 to 65535")
    return address


Target = Annotated[str, Field(min_length=1)]
PolicyTarget = Annotated[str, AfterValidator(check_entry)]
TokenId = Annotated[int, Field(ge=0)]


def require_smoothing(variant: str, label_smoothing: float) -> None:
    """Raises ValueError if a variant of DPO has no such label smoothing."""
    if label_smoothing > 0 and not VARIANTS[variant].takes_smoothing:
        raise ValueError(
            f"dpo.label_smoothing is {label_smoothing}, but dpo.variant is '{variant}', which has none; set the former "
            f"to 0, or the latter to one of {', '.join(SMOOTHED_VARIANTS)}"
        )


class TrainerServerConfig(ServerConfig):
    """Where the TrainerService of the run listens."""

    port: Port = TRAINER.port
    metrics_port: Port = TRAINER.metrics_port
    slow_call_seconds: float = Field(default=0.0, ge=0)
    """A call that takes longer is logged; 0, the default here, logs none: to watch a run is one call as long as it."""
    linger_seconds: float = Field(default=0.0, ge=0)
    """How long the ports answer after the end of the run, so that Prometheus sees its last step; a signal ends it."""


class ServicesConfig(Section):
    """The services that the run calls, and how long it has patience with them."""

    policy_targets: list[PolicyTarget] = Field(default=[POLICY.local_target], min_length=1)
    """Where the replicas of the policy service are: "host:port" of one; "dns:///name:port", all addresses of a name;
    "kubernetes:///[namespace/]service:port", the endpoints of a Service; "file:///path", a "host:port" on each line."""
    push: Literal["parallel", "relay"] = "parallel"
    """How weights reach the replicas: from the trainer to each, or to the first, and from each to the next."""
    push_encoding: Literal["auto", "full"] = "auto"
    """"auto" sends what changed where that is less, and the replica has what it applies to; "full" always sends all."""
    replica_probe_seconds: float = Field(default=2.0, gt=0)
    """Time between two health checks of a replica."""
    replica_hang_seconds: float = Field(default=10.0, gt=0)
    """A replica that answers no health check for so long is given up until it does: others get its prompts."""
    reward_target: Target = REWARD.local_target
    """"host:port" of the reward service."""
    reference_target: Target = REFERENCE.local_target
    """"host:port" of the reference service."""
    wait_for_services_seconds: float = Field(default=300.0, ge=0)
    """How long a service may be away before the run ends with an error."""
    generate_deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest time for the completions of one step."""
    score_deadline_seconds: float = Field(default=60.0, gt=0)
    """Longest time for one completion's score or reference log-probabilities."""
    push_deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest time for one weight push; a replica that does not have the weights by then is set aside."""


class ModelConfig(Section):
    """The model that is trained."""

    path: Path
    """Hugging Face checkpoint of a causal language model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the forward and backward pass, and of the weights that are pushed and saved. With bfloat16 the
    optimizers keep float32 master weights."""
    device: str = Field(default="auto", min_length=1)
    """A torch device; "auto" takes CUDA where there is one, else the CPU."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them, also those of PPO's critic: a third more
    time, far less memory."""


class PromptsConfig(Section):
    """Where the prompts come from."""

    path: Path
    """JSONL; each line has "prompt" (text) or "messages" (a list of role and content)."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts, after the chat template, are dropped and counted."""


class SamplingConfig(Section):
    """How completions are sampled."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Most tokens of a completion, the stop id included."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Divides the logits, in sampling and in every log-probability of training."""
    stop_ids: tuple[TokenId, ...] = ()
    """Token ids that end a completion; empty takes the model's own."""

    def of_each(self, completions_per_prompt: int) -> Sampling:
        """Returns what to ask a policy service for: so many completions of each prompt."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            completions_per_prompt=completions_per_prompt,
            stop_ids=self.stop_ids,
        )


class CheckpointConfig(Section):
    """When the run saves what it needs to go on."""

    every_steps: int = Field(default=10, ge=0)
    """Steps between two checkpoints; 0 writes one only when it is asked for and when the run is stopped."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; older ones are deleted unless a field below keeps them."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that this divides are kept for good; 0 keeps none so."""
    keep_best: str = ""
    """Metric whose best checkpoint is kept besides, such as "reward_mean"; empty keeps none so."""
    keep_best_order: Literal["max", "min"] = "max"
    """Whether the best is where keep_best is largest or smallest."""


class WatchConfig(Section):
    """What the alerts of the deployment hold a run to."""

    kl_budget: float = Field(default=20.0, gt=0)
    """KL to the reference, in nats per completion, past which somebody should look; the run itself goes on."""


class EvaluationConfig(Section):
    """Held-out prompts that the policy in training answers now and then, sampled as the run samples."""

    prompts_path: Path | None = None
    """JSONL as prompts.path, of prompts that are not trained on; absent: no evaluation."""
    every_steps: int = Field(default=10, ge=1)
    """Steps between two evaluations; the first is before the first step, the last after the last."""
    num_prompts: int = Field(default=64, ge=1)
    """The first so many prompts of the file; all of them if it has fewer."""
    completions: int = Field(default=1, ge=1, le=256)
    """Completions of each prompt."""
    gold_target: Target | None = None
    """"host:port" of another reward service, which the run is not trained on; absent: none."""

    @model_validator(mode="after")
    def _gold_has_prompts(self) -> Self:
        if self.gold_target is not None and self.prompts_path is None:
            raise ValueError(
                f"evaluation.gold_target is '{self.gold_target}', but evaluation.prompts_path is absent: name a JSONL "
                "file of held-out prompts, or remove the target"
            )
        return self


class OnlineTrainingConfig(Section):
    """How much is sampled and trained on, and how it is cut."""

    steps: int = Field(default=100, ge=1)
    """Steps of the run: each samples, scores, updates and pushes once."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of one step."""
    group_size: int = Field(default=1, ge=1, le=256)
    """Completions of each prompt."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of each pass."""
    max_policy_lag: int = Field(default=0, ge=0, le=16)
    """By how many versions the policy that sampled a token may be behind the one in training. 0: sample, then train, in
    turn. k: while a step trains, up to k later ones are sampled; rollouts in flight go on over a push."""
    max_dropped_fraction: float = Field(default=0.1, ge=0, lt=1)
    """The run ends with an error when more than this share of a step's rollouts got no score or no finite numbers."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Most tokens of one forward and backward pass. Changes memory and speed, never the result."""
    single_pass_tokens: int = Field(default=4096, ge=0)
    """Where a step is one epoch of one minibatch with at most this many tokens, the activations of its forward passes
    are kept until the advantages are known, so that none is run twice. Costs memory: about 2 MB a token for two models
    of 135M parameters. One rank alone can do it."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of prompts, the seeds of completions and the split into minibatches."""

    @property
    def rollouts_per_step(self) -> int:
        """Completions sampled in one step."""
        return self.prompts_per_step * self.group_size


class GroupTrainingConfig(OnlineTrainingConfig):
    """How much is sampled and trained on, and how it is cut."""

    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts of one step."""
    group_size: int = Field(default=8, ge=1, le=256)
    """Completions of each prompt, which are compared with one another."""


class PairTrainingConfig(OnlineTrainingConfig):
    """How much is sampled and trained on, and how it is cut."""

    group_size: int = Field(default=2, ge=1, le=256)
    """Completions of each prompt; the best and the worst of them make its pair."""


class LossKlConfig(KlConfig):
    """What keeps the policy near the reference."""

    place: Literal["reward", "loss"] = "loss"
    """In the reward of each token (as k1, without gradient), or as a term of the loss."""
    coef: float = Field(default=0.04, ge=0)
    """Reward lost, or loss, per nat of KL; where target is set, only the start value."""


class CriticOptimizerConfig(OptimizerConfig):
    """AdamW for a separate critic, which may move faster than the policy."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""


class GroupsConfig(Section):
    """Which groups are worth training on."""

    drop_uniform: bool = False
    """Leave out groups whose rewards are all equal, and sample other prompts in their place."""
    max_rounds: int = Field(default=3, ge=1)
    """Times that a step samples, at most; it then goes on with the groups it has."""
