"""TRL's side of bench/train.py: its own trainers, told to take the same steps.

What is set is what the work needs, and what makes TRL fast on the machine:

- examples in the order of their length, so that a micro-batch of 8 sequences (TRL's default) has little padding;
- activations kept, not computed again (TRL's default is to compute them again), as ours are;
- the reference's log-probabilities of DPO computed once, before the first step, which is not timed;
- the loss in chunks where TRL has it (SFT).

TRL's padding-free batches need flash attention, which there is none of on a CPU. PPO gets its completions from here
instead of sampling them, and its time is that of the update alone: from the first forward pass with gradient to the end
of the optimizer step. TRL's passes for reference, scores and values before it are left out.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from bench.train_work import TrainWork

MODES = {
    # mode: mixed precision by autocast; the weights are float32 in both
    "fp32": False,
    "bf16": True,
}

MICRO_BATCH = 8
"""Sequences of one forward and backward pass; TRL's default."""


class StepTimer(TrainerCallback):
    """Seconds of each step: from its beginning, or from the mark made in it, to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.mark: float | None = None

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        """A step begins."""
        self.mark = time.monotonic()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """A step ends."""
        if self.mark is not None:
            self.seconds.append(time.monotonic() - self.mark)
        self.mark = None


class PretokenizedDPOTrainer(DPOTrainer):
    """DPOTrainer for examples that are token ids already, which RewardTrainer and SFTTrainer take as they are."""

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **named: Any) -> Dataset:
        return dataset


def run(task: str, mode: str, work: TrainWork, steps: int, folder: str) -> list[float]:
    """Takes the steps and returns the seconds of each. Args: task: of train_work.TASKS; mode: of MODES."""
    tokenizer = AutoTokenizer.from_pretrained(work.policy_path)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(work.pad_id)
    timer = StepTimer()
    shared = {
        "output_dir": folder,
        "bf16": MODES[mode],
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    make = {"sft": _sft, "reward": _reward, "dpo": _dpo, "ppo": _ppo}[task]
    trainer = make(work, tokenizer, steps, shared, timer)
    trainer.add_callback(timer)
    trainer.train()
    return timer.seconds


def _offline(num_examples: int, examples_per_pass: int, steps: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": examples_per_pass,
        "gradient_accumulation_steps": -(-num_examples // examples_per_pass),
        "max_steps": steps,
        "train_sampling_strategy": "sequential",
        "max_length": None,
    }


def _sft(work: TrainWork, tokenizer: PreTrainedTokenizerBase, steps: int, shared: dict[str, Any], _: Any) -> SFTTrainer:
    examples = Dataset.from_list(
        [
            {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
            for prompt, completion in work.conversations
        ]
    )
    return SFTTrainer(
        model=_load(AutoModelForCausalLM, work.policy_path),
        args=SFTConfig(**shared, **_offline(len(examples), MICRO_BATCH, steps), completion_only_loss=True),
        train_dataset=examples,
        processing_class=tokenizer,
    )


def _reward(
    work: TrainWork, tokenizer: PreTrainedTokenizerBase, steps: int, shared: dict[str, Any], _: Any
) -> RewardTrainer:
    examples = Dataset.from_list(
        [{"chosen_ids": prompt + chosen, "rejected_ids": prompt + other} for prompt, chosen, other in work.pairs]
    )
    return RewardTrainer(
        model=_load(AutoModelForSequenceClassification, work.scalar_path),
        args=RewardConfig(**shared, **_offline(len(examples), MICRO_BATCH // 2, steps)),
        train_dataset=examples,
        processing_class=tokenizer,
    )


def _dpo(work: TrainWork, tokenizer: PreTrainedTokenizerBase, steps: int, shared: dict[str, Any], _: Any) -> DPOTrainer:
    examples = Dataset.from_list(
        [{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": other} for prompt, chosen, other in work.pairs]
    )
    options = _offline(len(examples), MICRO_BATCH // 2, steps)
    return PretokenizedDPOTrainer(
        model=_load(AutoModelForCausalLM, work.policy_path),
        args=DPOConfig(**shared, **options, precompute_ref_log_probs=True),
        train_dataset=examples,
        processing_class=tokenizer,
    )


def _ppo(
    work: TrainWork, tokenizer: PreTrainedTokenizerBase, steps: int, shared: dict[str, Any], timer: StepTimer
) -> PPOTrainer:
    tokenizer.padding_side = "left"
    count = len(work.conversations)
    width = max(len(completion) for _, completion in work.conversations)
    _give_completions(work, width)
    _mark_first_pass_with_gradient(timer)
    config = PPOConfig(
        **shared,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=count // MICRO_BATCH,
        num_mini_batches=1,
        num_ppo_epochs=1,
        num_sample_generations=0,
        total_episodes=count * steps,
        response_length=width,
        temperature=1.0,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=_load(AutoModelForCausalLM, work.policy_path),
        ref_model=_load(AutoModelForCausalLM, work.policy_path),
        reward_model=_load(AutoModelForSequenceClassification, work.scalar_path),
        value_model=_load(AutoModelForSequenceClassification, work.scalar_path),
        train_dataset=Dataset.from_dict({"input_ids": [prompt for prompt, _ in work.conversations]}),
    )


def _give_completions(work: TrainWork, width: int) -> None:
    """Makes PPOTrainer "sample" each prompt's own completion, with logits that take no memory."""
    completions = {tuple(prompt): completion for prompt, completion in work.conversations}

    def given(model: Any, queries: torch.Tensor, _size: int, pad_id: int, _config: Any) -> tuple[Any, Any]:
        prompts = [tuple(token for token in row if token != pad_id) for row in queries.tolist()]
        rows = [completions[prompt] for prompt in prompts]
        padded = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
        logits = torch.zeros(1, 1, 1).expand(len(rows), width, model.config.vocab_size)
        return torch.cat([queries, padded], dim=1), logits

    ppo_trainer.batch_generation = given


def _mark_first_pass_with_gradient(timer: StepTimer) -> None:
    forward: Callable[..., Any] = ppo_trainer.forward

    def watched(*arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and timer.mark is None:
            timer.mark = time.monotonic()
        return forward(*arguments, **named)

    ppo_trainer.forward = watched


def _load(auto_class: Any, path: str) -> Any:
    return auto_class.from_pretrained(path, dtype=torch.float32)
